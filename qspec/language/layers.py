"""The rules and passes of a recipe against the modules of a model: who decides what, and what cannot be.

`verify` is exact, for a model whose number of blocks is known (the plan calls it). `outline_problems` is
for `check`, where only the families are known: it tries a few numbers of blocks and reports what is wrong with
all of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache

from qspec.diagnostics import Diagnostic, Note, RecipeError, Source, Span, errors, in_order, listed
from qspec.formats import Scheme
from qspec.language.layout import Layout, lay_out
from qspec.language.lints import not_allowed, rules_without_effect, unhandled_outliers
from qspec.language.order import PassCheck
from qspec.language.parser import read
from qspec.language.selectors import ModuleTable, ModuleTerm, RoleTerm, Selector, name_matches, term_matches
from qspec.language.spec import Offer, Rule, Spec
from qspec.language.unmatched import selector_problems
from qspec.models.family import Family, ModuleEntry


def verify(spec: Spec, modules: Sequence[ModuleEntry], layers: int) -> Layout:
    """The layout for a real model with `layers` blocks. Raises RecipeError where the recipe does not fit
    it."""
    sources = _sources(spec)
    table = ModuleTable(modules, layers)
    found = in_order(not_allowed(problems(spec, table, sources), sources), sources)
    if errors(found):
        raise RecipeError(found, sources)
    return replace(lay_out(spec.rules, table), warnings=found)


def _sources(spec: Spec) -> dict[str, Source]:
    """The texts that the spec came from, read once more: diagnostics show their lines."""
    sources: dict[str, Source] = {}
    spans = [rule.span for rule in spec.rules] + [use.span for use in spec.passes]
    for path in dict.fromkeys([spec.source, *(span.path for span in spans)]):
        try:
            sources[path] = read(path)[0]
        except OSError:  # moved since it was read: a message still stands without its line
            sources[path] = Source(path, "")
    return sources


def problems(spec: Spec, table: ModuleTable, sources: Mapping[str, Source]) -> tuple[Diagnostic, ...]:
    """Everything that is wrong or odd about the recipe for these modules."""
    found = selector_problems(_selectors(spec), table)
    layout = lay_out(spec.rules, table)
    found += _rule_problems(spec.rules, layout) + _offer_problems(spec, layout)
    if not errors(found):
        passes = PassCheck(spec, layout, sources)
        found += passes.run() + rules_without_effect(spec, layout, sources)
        found += unhandled_outliers(layout, [[spec.passes[i] for i in uses] for uses in passes.uses])
    return tuple(dict.fromkeys(found))


def _selectors(spec: Spec) -> list[Selector]:
    offers = [offer.selector for offer in spec.search.offers] if spec.search else []
    return [*(rule.selector for rule in spec.rules), *(use.selector for use in spec.passes), *offers]


# --- without a model ---


def outline_problems(spec: Spec, families: Sequence[Family], sources: Mapping[str, Source]) -> tuple[Diagnostic, ...]:
    """What is wrong for one of the families whatever the number of blocks; each problem once."""
    found: dict[tuple[str, Span], Diagnostic] = {}
    for family in families:
        for problem in _family_problems(spec, family, sources):
            found.setdefault((problem.code, problem.span), problem)
    return tuple(found.values())


def _family_problems(spec: Spec, family: Family, sources: Mapping[str, Source]) -> tuple[Diagnostic, ...]:
    """Tried with the smallest number of blocks that the indices admit, and with more."""
    least = _least_layers(spec)
    counts = [least, least + 1, 2 * least, 2 * least + 3] if _index_parts(spec) else [2]
    needs_names = _NeedsNames(spec)
    sure: dict[tuple[str, Span], Diagnostic] | None = None
    for layers in counts:
        table = _outline(family, _representatives(spec, layers), _experts(spec), layers)
        found = {(d.code, d.span): d for d in problems(spec, table, sources) if not needs_names(d)}
        sure = found if sure is None else {key: d for key, d in sure.items() if key in found}
        if not sure:
            return ()
    return tuple((sure or {}).values())


OF_LAYERS = ("QS034", "QS038", "QS045", "QS050", "QS051", "QS052", "QS053")  # codes that the model's modules decide


def unsure(spec: Spec) -> tuple[str, ...]:
    """Codes that are found for certain with a model alone: of a recipe that names single blocks or modules."""
    return OF_LAYERS if _index_parts(spec) or _NeedsNames(spec).raw else ()


class _NeedsNames:
    """Whether a finding hangs on `module("...")`, for which blocks differ in more than their index."""

    def __init__(self, spec: Spec) -> None:
        self.raw = {term.span for s in _selectors(spec) for term in s.terms if isinstance(term, ModuleTerm)}

    def __call__(self, problem: Diagnostic) -> bool:
        return problem.span in self.raw or (bool(self.raw) and problem.code in OF_LAYERS)


def _index_parts(spec: Spec, where: slice = slice(1)) -> list[tuple[int, int]]:
    """Of blocks, or of the steps `where`."""
    terms = [t for selector in _selectors(spec) for t in selector.terms if isinstance(t, RoleTerm)]
    parts = [p for term in terms for segment in term.segments[where] for p in segment.indices]
    return [(p.low, p.high) for p in parts if p.low is not None and p.high is not None]


def _least_layers(spec: Spec) -> int:
    return max([2, *(i + 1 if i >= 0 else -i for part in _index_parts(spec) for i in part)])


def _representatives(spec: Spec, layers: int) -> tuple[int, ...]:
    """Those blocks at which some selector may change its mind; the others are like one of these."""
    ends = {(i if i >= 0 else i + layers) + step for part in _index_parts(spec) for i in part for step in (-1, 0, 1)}
    return tuple(sorted(b for b in ends | {0, layers - 1} if 0 <= b < layers))


def _experts(spec: Spec) -> tuple[int, ...]:
    """The same of experts, of which there may be any number."""
    ends = {i + step for part in _index_parts(spec, slice(1, None)) for i in part for step in (-1, 0, 1)}
    return tuple(sorted(e for e in ends | {0} if e >= 0))


@lru_cache(maxsize=64)
def _outline(family: Family, blocks: tuple[int, ...], experts: tuple[int, ...], layers: int) -> ModuleTable:
    return ModuleTable(family.outline(blocks, experts), layers)


# --- rules ---


def _rule_problems(rules: Sequence[Rule], layout: Layout) -> list[Diagnostic]:
    found = []
    tied = {id(rule) for entry in layout.modules if entry.tied for rule in _by_name(rules, entry, layout.table.layers)}
    winners = list(dict.fromkeys(rule for rule in layout.decided if rule is not None))[:2]
    for count in layout.counts:
        if count.matched and not count.decides and id(count.rule) not in tied:
            notes = tuple(Note(rule.span, "this one wins") for rule in winners)
            message = "later rules decide every module that this rule selects"
            hint = "remove this rule, or move it below the others"
            found.append(Diagnostic("QS034", message, count.rule.span, hint, "warning", notes=notes))
    for entry, rule in zip(layout.modules, layout.decided, strict=True):
        if rule is not None and rule.scheme is not None and entry.only_kept:
            message = f"`{entry.role}` can only be kept: no kernel computes it quantized"
            hint = f"write `layers {entry.role} keep` after this rule"
            found.append(Diagnostic("QS036", message, _term_span(rule, entry), hint))
    return found


def _offer_problems(spec: Spec, layout: Layout) -> list[Diagnostic]:
    """Choices for what can only be kept, and linears that must share a scheme and cannot."""
    if spec.search is None:
        return []
    found = []
    shared: dict[tuple[object, ...], list[tuple[ModuleEntry, Offer | None, tuple[Scheme | None, ...]]]] = {}
    offered: dict[int, Offer] = {}  # module -> the last offer that selects it
    for one in spec.search.offers:
        offered |= dict.fromkeys(layout.table.select(one.selector), one)
    for m, (entry, rule) in enumerate(zip(layout.modules, layout.decided, strict=True)):
        offer = offered.get(m)
        if not entry.only_kept:
            choices = offer.choices if offer else (rule.scheme if rule else None,)
            shared.setdefault((entry.site, entry.mlp), []).append((entry, offer, choices))
        elif offer is not None and any(offer.choices):
            message = f"`{entry.role}` can only be kept: no kernel computes it quantized"
            found.append(Diagnostic("QS036", message, _term_span(offer, entry), "offer choices on blocks only"))
    for members in shared.values() if spec.search.fused else ():
        common = set.intersection(*(set(choices) for _, _, choices in members))
        spans = [_term_span(offer, entry) for entry, offer, _ in members if offer]
        if not common and spans:
            parts = listed([entry.role.part for entry, _, _ in members], "and")
            message = f"{parts} read one input and share a scheme, but are offered none in common"
            hint = "offer them the same schemes, or write `fused false`"
            found.append(Diagnostic("QS037", message, max(spans, key=lambda span: span.start), hint))
    return found


def _by_name(rules: Sequence[Rule], entry: ModuleEntry, layers: int) -> list[Rule]:
    """For each name of a module the last rule that calls it so, where there is one."""
    found = []
    for name in entry.names:
        calling = [r for r in rules if any(name_matches(term, name, layers) for term in r.selector.terms)]
        found += calling[-1:]
    return found


def _term_span(rule: Rule | Offer, entry: ModuleEntry) -> Span:
    """The term of the rule that selects a module outside of the blocks."""
    spans = [term.span for term in rule.selector.terms if term_matches(term, entry, 1)]
    return spans[0] if spans else rule.span
