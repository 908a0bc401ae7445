"""Which rule decides which module: later rules win."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from qspec.diagnostics import Diagnostic
from qspec.language.selectors import Selector
from qspec.language.spec import Rule
from qspec.values import value

if TYPE_CHECKING:
    from qspec.models.family import ModuleEntry


@value
class RuleCount:
    """How many modules a rule matches, and how many of them it decides."""

    rule: Rule
    matched: int
    decides: int


@value
class Layout:
    """For each module the deciding rule (None: no rule matched, the module is kept), and the rules'
    counts."""

    modules: tuple[ModuleEntry, ...]
    decided: tuple[Rule | None, ...]
    counts: tuple[RuleCount, ...]
    warnings: tuple[Diagnostic, ...] = ()


def matches(selectors: Sequence[Selector], modules: Sequence[ModuleEntry], layers: int) -> list[tuple[bool, ...]]:
    """For each module, which of the selectors select it."""
    columns = {s: [s.matches(entry, layers) for entry in modules] for s in dict.fromkeys(selectors)}
    return list(zip(*(columns[s] for s in selectors), strict=True)) if selectors else [()] * len(modules)


def lay_out(rules: Sequence[Rule], modules: Sequence[ModuleEntry], layers: int) -> Layout:
    """Later rules win."""
    rows = matches([rule.selector for rule in rules], modules, layers)
    winners = [max((i for i, hit in enumerate(row) if hit), default=-1) for row in rows]
    counts = tuple(
        RuleCount(rule, sum(row[i] for row in rows), sum(w == i for w in winners)) for i, rule in enumerate(rules)
    )
    decided = tuple(rules[w] if w >= 0 else None for w in winners)
    return Layout(tuple(modules), decided, counts)
