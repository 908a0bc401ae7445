"""What is said of the word under the cursor, as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from qspec import passes
from qspec.diagnostics import Span, errors
from qspec.formats import NUMBER_FORMATS
from qspec.language.fields import Setting, settings
from qspec.language.places import Node, declaration
from qspec.language.reference import statements, takes
from qspec.language.selectors import Selector
from qspec.language.spec import BLOCK_CLASSES, REGIMES, Rollouts
from qspec.language.syntax import Block, Leaf, Tree
from qspec.lsp.recipes import Recipes
from qspec.plan import Plan, bits_text
from qspec.plan.modules import ModulePlan
from qspec.plan.text import alike
from qspec.planned import Planned

MOST_ROWS = 24


def hover(recipes: Recipes, path: str, offset: int) -> tuple[str, Span] | None:
    """The text, and the word or selector that it is about; None where there is nothing to say."""
    symbol = recipes.symbol(path, offset)
    if symbol is not None:
        span = declaration(recipes.merged(path), symbol)
        if span is None:
            return None
        if symbol.kind == "param":
            return _code(str(recipes.merged(path).params[symbol.name])), symbol.span
        return _scheme(recipes, path, symbol.name), symbol.span
    nodes = recipes.at(path, offset)
    selector = next((node for node in nodes if isinstance(node, Tree) and node.rule == "selector"), None)
    if selector is not None:
        text = _selector(recipes, path, Selector.of(selector))
        return (text, selector.span) if text else None
    if not nodes or not isinstance(nodes[-1], Leaf):
        return None
    word = nodes[-1]
    said = _word(nodes, word)
    return (said, word.span) if said else None


def _word(nodes: Sequence[Node], word: Leaf) -> str | None:
    """Of a word that is neither the author's own name nor in a selector."""
    trees = [node for node in nodes if isinstance(node, Tree)]
    blocks = [node for node in nodes if isinstance(node, Block)]
    rule = trees[-1].rule if trees else ""
    called = _called(trees)
    if called is not None and rule == "apply" and word.kind == "NAME":
        return _pass(word.text, called)
    if called is not None and rule == "argument" and word is trees[-1].parts[0]:
        return _setting(settings(called).get(word.text))
    if rule == "format" and word.text in NUMBER_FORMATS:
        return f"**{word.text}**: {NUMBER_FORMATS[word.text].about}"
    if word.text in REGIMES and rule == "names":
        low, high = REGIMES[word.text]
        return f"**{word.text}**: {low} to {high} tokens in a forward pass"
    if blocks and trees and word is trees[0].key:
        return _setting(settings(BLOCK_CLASSES[blocks[-1].kind]).get(word.text))
    if word.text in statements() and word.kind == word.text.upper():
        return f"**{word.text}**: {statements()[word.text]}"
    return None


def _called(trees: Sequence[Tree]) -> Any:
    """The class of what is called around a word: a pass, or rollouts."""
    for tree in reversed(trees):
        if tree.rule == "rollouts":
            return Rollouts
        if tree.rule == "apply":
            return passes.available().get(tree.values[0].text)
    return None


def _setting(setting: Setting | None) -> str | None:
    return f"**{setting.key}**: {setting.doc}  \n{takes(setting)}" if setting else None


def _pass(name: str, cls: Any) -> str:
    lines = [f"**{name}**: {(cls.__doc__ or '').strip()}"]
    lines += [f"- `{one.key}`: {one.doc} ({takes(one)})" for one in settings(cls).values()]
    return "\n".join(lines)


def _scheme(recipes: Recipes, path: str, name: str) -> str:
    block = recipes.merged(path).schemes[name]
    text = _code("\n".join([f"scheme {name} {{", *(f"  {tree}" for tree in block.settings), "}"]))
    planned = recipes.plan(path)
    if planned is None:
        return text
    modules = [m for m in planned.plan.modules if m.scheme is not None and m.scheme.name == name]
    return f"{text}\n\n{_modules(planned, modules)}" if modules else f"{text}\n\nno module of {_model(planned)} has it"


def _selector(recipes: Recipes, path: str, selector: Selector) -> str | None:
    planned = recipes.plan(path)
    if planned is None:
        return "what it selects can be told once the recipe has no errors"
    plan = planned.plan
    try:
        matched = [m for m in plan.modules if selector.matches(m.entry, plan.shape.layers)]
    except ValueError:
        return None  # a pattern that is not accepted: the diagnostics say so
    if not matched:
        return f"selects nothing in {_model(planned)}"
    stale = "\n\nas of the last version without errors" if errors(recipes.problems(path)) else ""
    return _modules(planned, matched) + stale


def _modules(planned: Planned, modules: Sequence[ModulePlan]) -> str:
    """A table of the modules, those with the same fate in one row."""
    rows = alike(modules)
    count = f"{len(modules)} module{'' if len(modules) == 1 else 's'}"
    lines = [
        f"{count} of {_model(planned)}",
        "",
        "| modules | scheme | bits per weight | kernel |",
        "|---|---|---|---|",
    ]
    lines += [f"| `{row.roles}` | {row.scheme} | {row.bits:.3f} | {row.kernel} |" for row in rows[:MOST_ROWS]]
    if len(rows) > MOST_ROWS:
        lines.append(f"| and {len(rows) - MOST_ROWS} more | | | |")
    lines += ["", _whole(planned.plan)]
    return "\n".join([*lines, *([planned.plan.notice] if planned.plan.notice else [])])


def _whole(plan: Plan) -> str:
    return f"bits per weight: {bits_text(plan.bits_per_weight, plan.bits_per_weight_model, 3)}"


def _model(planned: Planned) -> str:
    shape = planned.plan.shape
    return f"{planned.plan.family} with {shape.layers} blocks of width {shape.width}"


def _code(text: str) -> str:
    return f"```qs\n{text}\n```"
