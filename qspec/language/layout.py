"""Which rule decides which module: later rules win."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from qspec.diagnostics import Diagnostic
from qspec.language.selectors import ModuleTable
from qspec.language.spec import Rule
from qspec.models.family import ModuleEntry


@dataclass(frozen=True)
class RuleCount:
    """How many modules a rule matches, and how many of them it decides."""

    rule: Rule
    matched: int
    decides: int


@dataclass(frozen=True)
class Layout:
    """For each module the deciding rule (None: no rule matched, the module is kept), and the rules'
    counts. selected: for each rule the places of the modules that it selects."""

    table: ModuleTable
    decided: tuple[Rule | None, ...]
    counts: tuple[RuleCount, ...]
    selected: tuple[tuple[int, ...], ...]
    warnings: tuple[Diagnostic, ...] = ()

    @property
    def modules(self) -> tuple[ModuleEntry, ...]:
        return self.table.modules


def lay_out(rules: Sequence[Rule], table: ModuleTable) -> Layout:
    """Later rules win."""
    matched = tuple(table.select(rule.selector) for rule in rules)
    winners = [-1] * len(table.modules)
    for i, places in enumerate(matched):
        for m in places:
            winners[m] = i
    decides = Counter(winners)
    counts = tuple(RuleCount(rule, len(matched[i]), decides[i]) for i, rule in enumerate(rules))
    decided = tuple(rules[w] if w >= 0 else None for w in winners)
    return Layout(table, decided, counts, matched)
