"""Which rule decides which module: later rules win."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from qspec.diagnostics import Diagnostic
from qspec.language.selectors import Selector
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
    counts."""

    modules: tuple[ModuleEntry, ...]
    decided: tuple[Rule | None, ...]
    counts: tuple[RuleCount, ...]
    warnings: tuple[Diagnostic, ...] = ()


def matches(selectors: Sequence[Selector], modules: Sequence[ModuleEntry], layers: int) -> list[tuple[int, ...]]:
    """For each selector, the places of the modules that it selects; selectors that read alike are asked once."""
    found = {
        selector: tuple(m for m, entry in enumerate(modules) if selector.matches(entry, layers))
        for selector in dict.fromkeys(selectors)
    }
    return [found[selector] for selector in selectors]


def lay_out(rules: Sequence[Rule], modules: Sequence[ModuleEntry], layers: int) -> Layout:
    """Later rules win."""
    matched = matches([rule.selector for rule in rules], modules, layers)
    winners = [-1] * len(modules)
    for i, places in enumerate(matched):
        for m in places:
            winners[m] = i
    decides = Counter(winners)
    counts = tuple(RuleCount(rule, len(matched[i]), decides[i]) for i, rule in enumerate(rules))
    decided = tuple(rules[w] if w >= 0 else None for w in winners)
    return Layout(tuple(modules), decided, counts)
