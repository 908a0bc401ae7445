"""Which rule decides which module: later rules win."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qspec.diagnostics import Diagnostic
from qspec.language.spec import Rule

if TYPE_CHECKING:
    from qspec.models.family import ModuleEntry


@dataclass(frozen=True)
class RuleCount:
    """How many modules a rule matches, and how many of them it decides."""

    rule: Rule
    matched: int
    decides: int


@dataclass(frozen=True)
class Layout:
    """For each module the deciding rule (None: no rule matched, the module is kept), and the rules' counts."""

    modules: tuple[ModuleEntry, ...]
    decided: tuple[Rule | None, ...]
    counts: tuple[RuleCount, ...]
    warnings: tuple[Diagnostic, ...] = ()


def lay_out(rules: Sequence[Rule], modules: Sequence[ModuleEntry], layers: int) -> Layout:
    """Later rules win."""
    matches = [[rule.selector.matches(entry, layers) for rule in rules] for entry in modules]
    winners = [max((i for i, hit in enumerate(row) if hit), default=-1) for row in matches]
    counts = tuple(
        RuleCount(rule, sum(row[i] for row in matches), sum(w == i for w in winners))
        for i, rule in enumerate(rules)
    )
    decided = tuple(rules[w] if w >= 0 else None for w in winners)
    return Layout(tuple(modules), decided, counts)
