"""The rules and passes of a recipe against the modules of a model: who decides what, and what cannot be.

`verify` is exact, for a model whose number of blocks is known (the plan calls it). `outline_problems` is for `check`, where
only the family is known: it tries a few numbers of blocks and reports what is wrong with all of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qspec.catalog import NoKernel, kernels_for
from qspec.diagnostics import (
    Diagnostic,
    Edit,
    Note,
    RecipeError,
    Source,
    Span,
    closest,
    errors,
    in_order,
    quote,
)
from qspec.language.parser import read
from qspec.language.selectors import Selector, index_range, path_matches, role_path, term_matches
from qspec.language.spec import INITIAL_FACTS, Fact, PassUse, Rule, Spec
from qspec.language.syntax import ModuleTerm, RoleTerm, Segment, Term

if TYPE_CHECKING:
    from qspec.models.family import Family, ModuleEntry


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


def verify(spec: Spec, modules: Sequence[ModuleEntry], layers: int) -> Layout:
    """The layout for a real model with `layers` blocks. Raises RecipeError where the recipe does not fit it."""
    found = problems(spec, modules, layers)
    if errors(found):
        raise RecipeError(*_with_sources(found))
    layout = lay_out(spec.rules, modules, layers)
    return Layout(layout.modules, layout.decided, layout.counts, found)


def _with_sources(found: Sequence[Diagnostic]) -> tuple[tuple[Diagnostic, ...], Mapping[str, Source]]:
    sources: dict[str, Source] = {}
    for path in {span.path for d in found for span in (d.span, *(n.span for n in d.notes))}:
        try:
            sources[path] = read(path)[0]
        except OSError:  # moved since it was read: the message still stands without its line
            sources[path] = Source(path, "")
    return in_order(found, sources), sources


def problems(spec: Spec, modules: Sequence[ModuleEntry], layers: int) -> tuple[Diagnostic, ...]:
    """Everything that is wrong or odd about the recipe for these modules."""
    found = [
        d
        for selector in _selectors(spec)
        for d in _selector_problems(selector[0], selector[1], modules, layers)
    ]
    layout = lay_out(spec.rules, modules, layers)
    found += _rule_problems(layout)
    if not found:
        found += _PassCheck(spec, layout, layers).run()
    return tuple(dict.fromkeys(found))


def _selectors(spec: Spec) -> list[tuple[Selector, Span]]:
    return [(r.selector, r.span) for r in spec.rules] + [(u.selector, u.span) for u in spec.passes]


# --- without a model ---------------------------------------------------------------------------------------------


def outline_problems(spec: Spec, family: Family) -> tuple[Diagnostic, ...]:
    """What is wrong whatever the number of blocks: tried with the smallest that the indices admit, and with more."""
    least = _least_layers(spec)
    counts = [least, least + 1, 2 * least, 2 * least + 3] if _has_indices(spec) else [2]
    raw = any(selector.raw for selector, _ in _selectors(spec))
    sure: dict[tuple[str, Span], Diagnostic] = {}
    for i, layers in enumerate(counts):
        modules = _representatives(spec, family, layers)
        found = {(d.code, d.span): d for d in problems(spec, modules, layers) if not (raw and _needs_all(d))}
        sure = found if i == 0 else {key: d for key, d in sure.items() if key in found}
    return tuple(sure.values())


def _needs_all(problem: Diagnostic) -> bool:
    """Whether the finding needs every module's name: with `module("...")`, blocks differ in more than their index."""
    return problem.code in ("QS030", "QS034", "QS050", "QS051", "QS052")


def _index_parts(spec: Spec) -> list[tuple[int, int]]:
    terms = [t for selector, _ in _selectors(spec) for t in selector.terms if isinstance(t, RoleTerm)]
    parts = [p for term in terms for segment in term.segments for p in segment.indices]
    return [(p.low, p.high) for p in parts if p.low is not None and p.high is not None]


def _has_indices(spec: Spec) -> bool:
    return bool(_index_parts(spec))


def _least_layers(spec: Spec) -> int:
    return max([2, *(i + 1 if i >= 0 else -i for part in _index_parts(spec) for i in part)])


def _representatives(spec: Spec, family: Family, layers: int) -> list[ModuleEntry]:
    """Modules of those blocks at which some selector may change its mind; the others are like one of these."""
    ends = {
        (i if i >= 0 else i + layers) + step
        for part in _index_parts(spec)
        for i in part
        for step in (-1, 0, 1)
    }
    blocks = sorted(b for b in ends | {0, layers - 1} if 0 <= b < layers)
    return list(family.outline(blocks))


# --- selectors ---------------------------------------------------------------------------------------------------


def _selector_problems(
    selector: Selector, statement: Span, modules: Sequence[ModuleEntry], layers: int
) -> list[Diagnostic]:
    found = []
    for term in selector.terms:
        bad_index = _index_problem(term, layers)
        if bad_index:
            found.append(bad_index)
        elif not any(term_matches(term, entry, layers) for entry in modules):
            found.append(_matches_nothing(term, modules, layers))
    return found


def _index_problem(term: Term, layers: int) -> Diagnostic | None:
    """A block that the model does not have."""
    segments: tuple[Segment, ...] = term.segments if isinstance(term, RoleTerm) else ()
    for segment in segments[:1]:
        for part in segment.indices:
            blocks = index_range(part, layers)
            if part.low is None:
                continue
            if not blocks:
                message = f"the range {part} holds no block of a model with {layers} blocks"
                return Diagnostic("QS032", message, part.span, "write the smaller block first")
            if blocks[0] < 0 or blocks[-1] >= layers:
                bad = part.low if not 0 <= blocks[0] < layers else part.high
                message = f"there is no block {bad}: the model has {layers} blocks"
                return Diagnostic(
                    "QS032", message, part.span, f"write indices from 0 to {layers - 1}, or -{layers} to -1"
                )
    return None


def _matches_nothing(term: Term, modules: Sequence[ModuleEntry], layers: int) -> Diagnostic:
    if isinstance(term, ModuleTerm):
        hint = f"the pattern must match a whole name such as {modules[len(modules) // 2].module}"
        return Diagnostic("QS030", f"{quote(str(term))} matches no module", term.span, hint)
    known = _known(modules)
    message = f"{quote(str(term))} selects nothing"
    for segment in term.segments:
        word = segment.names[0] if segment.names else None
        if word and word.name in ("norm", "final_norm"):
            hint = "norms stay as they are; select linears, the embedding or the head"
            return Diagnostic(
                "QS031", f"{quote(str(term))} is a norm, which is not quantized", term.span, hint
            )
    wrong = _wrong_word(term, known)
    if wrong:
        word, guess = wrong
        what = f"{message}: there is no {quote(word.name)}"
        if guess:
            return Diagnostic(
                "QS030", what, word.span, f"did you mean `{guess}`?", edits=(Edit(word.span, guess),)
            )
        return Diagnostic("QS030", what, word.span, f"roles are {_roles(modules)}")
    better = _longer(term, modules, layers)
    if better:
        hint = f"write `{better}`"
        return Diagnostic("QS030", message, term.span, hint, edits=(Edit(term.span, better),))
    return Diagnostic("QS030", message, term.span, f"roles are {_roles(modules)}")


def _known(modules: Sequence[ModuleEntry]) -> list[set[str]]:
    """The names that can stand at each step."""
    known: list[set[str]] = []
    for entry in modules:
        for depth, (name, _) in enumerate(role_path(entry.role)):
            if depth == len(known):
                known.append(set())
            known[depth].add(name)
    return known


def _wrong_word(term: RoleTerm, known: list[set[str]]):  # type: ignore[no-untyped-def]
    for depth, segment in enumerate(term.segments):
        for word in segment.names:
            names = known[depth] if depth < len(known) else set()
            if word.name not in names:
                return word, closest(word.name, names)
    return None


def _longer(term: RoleTerm, modules: Sequence[ModuleEntry], layers: int) -> str | None:
    """A spelling near the term that does select something: `blocks` with its index, or everything below."""
    text = str(term)
    first = term.segments[0]
    if first.names and first.names[0].name == "blocks" and not first.indices:
        text = text.replace("blocks", "blocks[*]", 1)
    for candidate in (text, f"{text}.*"):
        if candidate != str(term) and any(Selector(candidate).matches(entry, layers) for entry in modules):
            return candidate
    return None


def _roles(modules: Sequence[ModuleEntry]) -> str:
    names = dict.fromkeys(
        entry.role.part if entry.role.block is None else f"blocks[*].{entry.role.part}" for entry in modules
    )
    return ", ".join(names)


# --- rules -------------------------------------------------------------------------------------------------------


def _rule_problems(layout: Layout) -> list[Diagnostic]:
    found = []
    for count in layout.counts:
        if count.matched and not count.decides:
            later = _shadowing(count.rule, layout)
            notes = tuple(Note(rule.span, "this one wins") for rule in later[:2])
            message = "later rules decide every module that this rule selects"
            hint = "remove this rule, or move it below the others"
            found.append(Diagnostic("QS034", message, count.rule.span, hint, "warning", notes=notes))
    for entry, rule in zip(layout.modules, layout.decided, strict=True):
        if rule is not None and rule.scheme is not None and not entry.site:
            term = _term_for(rule.selector, entry)
            message = f"`{entry.role}` is a lookup table: no kernel multiplies with it"
            found.append(
                Diagnostic(
                    "QS036", message, term or rule.span, f"write `layers {entry.role} keep` after this rule"
                )
            )
    return found


def _term_for(selector: Selector, entry: ModuleEntry) -> Span | None:
    for term in selector.terms:
        if isinstance(term, RoleTerm) and path_matches(term, role_path(entry.role), 1):
            return term.span
    return None


def _shadowing(rule: Rule, layout: Layout) -> list[Rule]:
    return list(dict.fromkeys(r for r in layout.decided if r is not None and r is not rule))


# --- passes ------------------------------------------------------------------------------------------------------

_WHY = {
    Fact.FLOAT_WEIGHTS: "weights that are not quantized yet",
    Fact.PLAIN_INPUT: "an input that no transform has changed",
    Fact.CODES: "quantized weights",
}


class _PassCheck:
    """Follows the facts of every module through the passes."""

    def __init__(self, spec: Spec, layout: Layout, layers: int) -> None:
        self.spec = spec
        self.layout = layout
        self.layers = layers
        self.schemes = [rule.scheme if rule else None for rule in layout.decided]
        self.touched = [
            [use.selector.matches(entry, layers) for use in spec.passes] for entry in layout.modules
        ]

    def run(self) -> list[Diagnostic]:
        order = self._order(range(len(self.spec.passes)))
        found = [self._out_of_order(*clash) for clash in order.values()]
        if not found:
            found += self._unquantized()
        return found + self._idle() + self._kernels()

    def _order(self, sequence: Sequence[int]) -> dict[int, tuple[int, Fact, int | None]]:
        """The first clash of each pass: (pass, missing fact, the pass that cleared it)."""
        clashes: dict[int, tuple[int, Fact, int | None]] = {}
        for m, scheme in enumerate(self.schemes):
            facts, cleared = set(INITIAL_FACTS), dict[Fact, int]()
            for i in sequence:
                cls = self.spec.passes[i].params
                if not self.touched[m][i] or (cls.quantizes and scheme is None):
                    continue
                missing = sorted(cls.requires - facts)
                if missing:
                    clashes.setdefault(i, (i, missing[0], cleared.get(missing[0])))
                for fact in cls.clears:
                    cleared[fact] = i
                facts = (facts - cls.clears) | cls.establishes
        return clashes

    def _out_of_order(self, index: int, fact: Fact, culprit: int | None) -> Diagnostic:
        use = self.spec.passes[index]
        message = f"`{use.name}` needs {_WHY[fact]}"
        if culprit is None:
            makers = [i for i, u in enumerate(self.spec.passes) if fact in u.params.establishes and i > index]
            hint = (
                f"move this line below `{self.spec.passes[makers[0]].name}`" if makers else "remove this line"
            )
            return Diagnostic(
                "QS050", message, use.span, hint, edits=self._move(makers[0], index) if makers else ()
            )
        before = self.spec.passes[culprit]
        note = (Note(before.span, f"`{before.name}` comes first and ends that"),)
        sequence = [i for i in range(len(self.spec.passes)) if i != index]
        sequence.insert(sequence.index(culprit), index)
        if (
            before.name == use.name
            or index in self._order(sequence)
            or len(self._order(sequence)) >= len(self._order(range(len(self.spec.passes))))
        ):
            hint = f"remove one of the two, or let them work on different layers: after `{before.name}` this cannot run"
            return Diagnostic("QS050", message, use.span, hint, notes=note)
        hint = f"move this line above `{before.name}`"
        return Diagnostic("QS050", message, use.span, hint, edits=self._move(index, culprit), notes=note)

    def _move(self, index: int, before: int) -> tuple[Edit, ...]:
        """Writes pass `index` on a line of its own before pass `before`; only within one file."""
        use, target = self.spec.passes[index], self.spec.passes[before]
        if use.span.path != target.span.path:
            return ()
        at = Span(target.span.start, target.span.start, target.span.path)
        return (Edit(at, f"{use.text}\n"), Edit(use.span, ""))

    def _unquantized(self) -> list[Diagnostic]:
        """Rules whose modules have a scheme that no pass carries out."""
        lost: dict[Rule, list[str]] = {}
        for m, rule in enumerate(self.layout.decided):
            quantized = any(
                hit and use.params.quantizes
                for hit, use in zip(self.touched[m], self.spec.passes, strict=True)
            )
            if rule is not None and rule.scheme is not None and not quantized:
                lost.setdefault(rule, []).append(str(self.layout.modules[m].role))
        return [self._add_quantizer(rule, roles) for rule, roles in lost.items()]

    def _add_quantizer(self, rule: Rule, roles: list[str]) -> Diagnostic:
        assert rule.scheme is not None
        line = f"apply rtn() on {rule.selector.text}"
        message = f"no pass quantizes `{roles[0]}`, which has scheme `{rule.scheme.name}`"
        after = self.spec.passes[-1].span if self.spec.passes else self.spec.rules[-1].span
        edits = ()
        if after.path == rule.span.path:
            gap = "\n" if self.spec.passes else "\n\n"
            edits = (Edit(Span(after.end, after.end, after.path), gap + line),)
        return Diagnostic("QS051", message, rule.span, f"add `{line}` after the other passes", edits=edits)

    def _idle(self) -> list[Diagnostic]:
        """Passes of which every module is kept."""
        found = []
        for i, use in enumerate(self.spec.passes):
            if not any(row[i] and self.schemes[m] is not None for m, row in enumerate(self.touched)):
                message = f"`{use.name}` has nothing to do: every layer that it selects is kept"
                hint = "remove it, or give those layers a scheme with a `layers` rule"
                found.append(Diagnostic("QS052", message, use.span, hint, "warning"))
        return found

    def _kernels(self) -> list[Diagnostic]:
        """Transforms for which a scheme has no kernel."""
        found: dict[str, Diagnostic] = {}
        for m, scheme in enumerate(self.schemes):
            for i, use in enumerate(self.spec.passes):
                if scheme is not None and self.touched[m][i] and use.params.transform != "none":
                    problem = _transform_problem(use, scheme)
                    if problem:
                        found.setdefault(f"{i} {problem.message}", problem)
        return list(found.values())


def _transform_problem(use: PassUse, scheme) -> Diagnostic | None:  # type: ignore[no-untyped-def]
    try:
        kernels_for(scheme, use.params.transform, getattr(use.params, "block", 0))
    except NoKernel as missing:
        message = f"no kernel runs `{use.name}` with scheme `{scheme.name}`: {missing.what}"
        return Diagnostic("QS043", message, use.span, missing.hint or "")
    return None
