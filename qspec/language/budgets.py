"""`budget 4.25 bits, 5 GiB, 6 GiB memory, 12 ms for block_decode` -> Budgets; also the text of `--budget`."""

from __future__ import annotations

from qspec.diagnostics import RecipeError, Source, Span
from qspec.language import convert
from qspec.language import syntax as s
from qspec.language.formatter import amount_text
from qspec.language.merge import Merged
from qspec.language.params import Params
from qspec.language.parser import parse
from qspec.language.spec import BUDGET_UNITS, REGIMES, Budget

_NEEDS = {
    "bits": "nothing after it",
    "bytes": "`memory` or nothing after it",
    "time": "a regime, as in `12 ms for block_decode`",
}


def parse_budgets(text: str) -> tuple[Budget, ...]:
    """What `--budget` says. Raises RecipeError with the diagnostics of the same words in a recipe."""
    source = Source("--budget", f"search {{ budget {text} }}")
    file, problems = parse(source)
    merged = Merged(source.path, problems=list(problems))
    nodes = [item.node for one in file.items if isinstance(one.node, s.Block) for item in one.node.items]
    found = tuple(
        budget
        for node in nodes
        if isinstance(node, s.BudgetSetting)
        for budget in read_budgets(node, merged, Params(merged, {}))
    )
    if not merged.problems and (len(nodes) != 1 or len(file.items) != 1):
        merged.report(
            "QS005", "this is more than a budget", Span(0, 6, source.path), 'write it as in "4.25 bits, 5 GiB"'
        )
    if merged.problems:
        raise RecipeError(tuple(merged.problems), {source.path: source})
    return found


def read_budgets(node: s.BudgetSetting, merged: Merged, params: Params) -> tuple[Budget, ...]:
    """Each amount with its unit and kind; two of one kind are a mistake."""
    spans: dict[str, Span] = {}
    found = []
    for amount in node.amounts:
        budget = _budget(amount, merged, params)
        if budget is None:
            continue
        what = f"{budget.kind} {budget.regime or ''}".strip()
        if what in spans:
            merged.twice(f"a budget of {what}", amount.span, spans[what])
        spans.setdefault(what, amount.span)
        found.append(budget)
    return tuple(found)


def _budget(node: s.Amount, merged: Merged, params: Params) -> Budget | None:
    number = params.plain(node.number)
    if number is None:
        return None
    if not isinstance(number, s.Number) or not number.value > 0:
        message = f"`budget`: {convert.shown(number)} is not a number above 0"
        notes = params.notes(node.number)
        merged.report("QS017", message, node.number.span, "write a number, such as 4.25", notes=notes)
        return None
    if node.unit.name not in BUDGET_UNITS:
        merged.unknown("QS029", "unit", node.unit, BUDGET_UNITS)
        return None
    if node.regime is not None and node.regime.name not in REGIMES:
        merged.unknown("QS026", "regime", node.regime, REGIMES)
        return None
    kind = BUDGET_UNITS[node.unit.name][0]
    if (kind == "time") != (node.kind == "time") or (node.kind == "memory" and kind != "bytes"):
        message = f"`{amount_text(node)}` is not a budget"
        merged.report("QS029", message, node.span, f"`{node.unit.name}` has {_NEEDS[kind]}")
        return None
    regime = node.regime.name if node.regime else None
    return Budget("memory" if node.kind == "memory" else kind, number.text, node.unit.name, regime)
