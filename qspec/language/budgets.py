"""`budget 4.25 bits, 5 GiB, 6 GiB memory, 12 ms for block_decode` -> Budgets; also the text of `--budget`."""

from __future__ import annotations

from qspec.diagnostics import RecipeError, Source, Span
from qspec.language.fields import shown
from qspec.language.merge import Merged
from qspec.language.params import Params
from qspec.language.parser import parse
from qspec.language.spec import BUDGET_UNITS, REGIMES, Budget
from qspec.language.syntax import Block, Tree

_NEEDS = {
    "bits": "`active` or nothing after it",
    "bytes": "`memory`, `active` or nothing after it",
    "time": "a regime, as in `12 ms for block_decode`",
}


def parse_budgets(text: str) -> tuple[Budget, ...]:
    """What `--budget` says. Raises RecipeError with the diagnostics of the same words in a recipe."""
    source = Source("--budget", f"search {{ budget {text} }}")
    file, problems = parse(source)
    merged = Merged(source.path, problems=list(problems))
    nodes = [tree for item in file.items if isinstance(item.node, Block) for tree in item.node.settings]
    found = tuple(
        budget for node in nodes if node.rule == "budget" for budget in read_budgets(node, merged, Params(merged, {}))
    )
    if not merged.problems and (len(nodes) != 1 or len(file.items) != 1):
        merged.report(
            "QS005", "this is more than a budget", Span(0, 6, source.path), 'write it as in "4.25 bits, 5 GiB"'
        )
    if merged.problems:
        raise RecipeError(tuple(merged.problems), {source.path: source})
    return found


def read_budgets(node: Tree, merged: Merged, params: Params) -> tuple[Budget, ...]:
    """Each amount with its unit and kind; two of one kind are a mistake."""
    spans: dict[str, Span] = {}
    found = []
    for amount in node.trees():
        budget = _budget(amount, merged, params)
        if budget is None:
            continue
        what = f"{budget.kind} {budget.regime or ''}".strip()
        if what in spans:
            merged.twice(f"a budget of {what}", amount.span, spans[what])
        spans.setdefault(what, amount.span)
        found.append(budget)
    return tuple(found)


def _budget(node: Tree, merged: Merged, params: Params) -> Budget | None:
    written, unit, *regimes = node.values
    number = params.plain(written)
    if number is None:
        return None
    if number.kind != "NUMBER" or not float(number.text) > 0:
        message = f"`budget`: {shown(number)} is not a number above 0"
        merged.report("QS017", message, written.span, "write a number, such as 4.25", notes=params.notes(written))
        return None
    if unit.text not in BUDGET_UNITS:
        merged.unknown("QS029", "unit", unit, BUDGET_UNITS)
        return None
    for regime in regimes:
        if regime.text not in REGIMES:
            merged.unknown("QS026", "regime", regime, REGIMES)
            return None
    kind, memory, active = BUDGET_UNITS[unit.text][0], node.has("MEMORY"), node.has("ACTIVE")
    if (kind == "time") != bool(regimes) or (memory and kind != "bytes") or (active and kind == "time"):
        message = f"`{node}` is not a budget"
        merged.report("QS029", message, node.span, f"`{unit.text}` has {_NEEDS[kind]}")
        return None
    of = "memory" if memory else "active" if active else kind
    return Budget(of, number.text, unit.text, regimes[0].text if regimes else None)
