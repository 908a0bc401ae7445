"""The order of the passes, checked by the facts that each requires, establishes and clears, module by
module."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from qspec.catalog import NoKernel, kernels_for
from qspec.diagnostics import Diagnostic, Edit, Note, Source, Span
from qspec.formats import Scheme
from qspec.language.layout import Layout
from qspec.language.spec import INITIAL_FACTS, Fact, PassUse, Rule, Spec
from qspec.models.family import ModuleEntry

MAX_CLASHES = 20  # reported at once: for each, the order without it is worked out
WHOLE = "blocks[*].*"  # selects every linear of the blocks

_WHY = {
    Fact.FLOAT_WEIGHTS: "weights that are not quantized yet",
    Fact.PLAIN_INPUT: "an input that no transform has changed",
    Fact.OPEN_RANGE: "weights whose clip was not searched yet",
    Fact.CODES: "quantized weights",
}


class PassCheck:
    """Follows the facts of every module through the passes."""

    def __init__(self, spec: Spec, layout: Layout, sources: Mapping[str, Source]) -> None:
        self.sources = sources
        self.spec = spec
        self.layout = layout
        self.schemes = [rule.scheme if rule else None for rule in layout.decided]
        self.reach = [layout.table.select(use.selector) for use in spec.passes]  # pass -> modules
        uses: list[list[int]] = [[] for _ in layout.modules]
        for i, places in enumerate(self.reach):
            for m in places:
                uses[m].append(i)
        self.uses = [tuple(passes) for passes in uses]  # module -> passes
        # what happens to a module, kept or not: most have it in common with others
        self.histories = dict.fromkeys(zip(self.uses, (scheme is None for scheme in self.schemes), strict=True))

    def run(self) -> list[Diagnostic]:
        order = self._order(range(len(self.spec.passes)))
        clashes = list(order.values())[:MAX_CLASHES]
        found = [self._out_of_order(*clash) for clash in clashes] + self._partial()
        if not found:
            found += self._unquantized()
        return found + self._idle() + self._kernels()

    def _order(self, sequence: Sequence[int]) -> dict[int, tuple[int, Fact, int | None]]:
        """The first clash of each pass: (pass, missing fact, the pass that cleared it)."""
        clashes: dict[int, tuple[int, Fact, int | None]] = {}
        place = {i: at for at, i in enumerate(sequence)}
        for passes, kept in self.histories:
            facts, cleared = set(INITIAL_FACTS), dict[Fact, int]()
            for i in sorted(passes, key=place.__getitem__):
                use = self.spec.passes[i].params
                if use.quantizes and kept:
                    continue
                missing = sorted(use.requires - facts, key=lambda fact: cleared.get(fact, -1))
                if missing:
                    clashes.setdefault(i, (i, missing[0], cleared.get(missing[0])))
                for fact in use.ends():
                    cleared[fact] = i
                facts = (facts - use.ends()) | use.establishes
        return clashes

    def _out_of_order(self, index: int, fact: Fact, culprit: int | None) -> Diagnostic:
        use = self.spec.passes[index]
        message = f"`{use.name}` needs {_WHY[fact]}"
        if culprit is None:
            makers = [i for i, u in enumerate(self.spec.passes) if fact in u.params.establishes and i > index]
            hint = f"move this line below `{self.spec.passes[makers[0]].name}`" if makers else "remove this line"
            return Diagnostic("QS050", message, use.span, hint, edits=self._move(makers[0], index) if makers else ())
        before = self.spec.passes[culprit]
        note = (Note(before.span, f"`{before.name}` comes first and ends that"),)
        sequence = [i for i in range(len(self.spec.passes)) if i != index]
        sequence.insert(sequence.index(culprit), index)
        if (
            before.name == use.name
            or index in self._order(sequence)
            or len(self._order(sequence)) >= len(self._order(range(len(self.spec.passes))))
        ):
            hint = f"remove one of the two, or give them different layers: after `{before.name}` this cannot run"
            return Diagnostic("QS050", message, use.span, hint, notes=note)
        hint = f"move this line above `{before.name}`"
        return Diagnostic("QS050", message, use.span, hint, edits=self._move(index, culprit), notes=note)

    def _move(self, index: int, before: int) -> tuple[Edit, ...]:
        """Pass `index` on the line of pass `before`, and those between each a line further down; in one
        file only."""
        first, last = sorted((index, before))
        uses = self.spec.passes[first : last + 1]
        texts = [self._written(use) for use in uses]
        if len({use.span.path for use in uses}) > 1 or None in texts:
            return ()
        turned = [texts[-1], *texts[:-1]] if index > before else [*texts[1:], texts[0]]
        return tuple(Edit(use.span, text or "") for use, text in zip(uses, turned, strict=True))

    def _written(self, use: PassUse) -> str | None:
        source = self.sources.get(use.span.path)
        return source.text[use.span.start : use.span.end] if source else None

    def _unquantized(self) -> list[Diagnostic]:
        """Rules whose modules have a scheme that no pass carries out."""
        lost: dict[Rule, list[str]] = {}
        partly: dict[Rule, PassUse] = {}
        for m, rule in enumerate(self.layout.decided):
            if rule is None or rule.scheme is None:
                continue
            by = next((self.spec.passes[i] for i in self.uses[m] if self.spec.passes[i].params.quantizes), None)
            if by is None:
                lost.setdefault(rule, []).append(str(self.layout.modules[m].role))
            else:
                partly.setdefault(rule, by)
        return [self._add_quantizer(rule, roles, partly.get(rule)) for rule, roles in lost.items()]

    def _add_quantizer(self, rule: Rule, roles: list[str], partly: PassUse | None) -> Diagnostic:
        """partly: a pass that quantizes others of the rule's modules, which a second one cannot quantize again."""
        assert rule.scheme is not None
        message = f"no pass quantizes `{roles[0]}`, which has scheme `{rule.scheme.name}`"
        if partly is not None:
            hint = f"let `{partly.name}` have it too, or add a pass that quantizes it and what else is left"
            return Diagnostic("QS051", message, rule.span, hint, notes=(Note(partly.span, "quantizes the others"),))
        line = f"apply rtn() on {rule.selector.text}"
        after = self.spec.passes[-1].span if self.spec.passes else self.spec.rules[-1].span
        edits: tuple[Edit, ...] = ()
        if after.path == rule.span.path:
            gap = "\n" if self.spec.passes else "\n\n"
            edits = (Edit(Span(after.end, after.end, after.path), gap + line),)
        return Diagnostic("QS051", message, rule.span, f"add `{line}` after the other passes", edits=edits)

    def _partial(self) -> list[Diagnostic]:
        """Passes over the whole model whose selector leaves out linears of the blocks."""
        found = []
        for i, use in enumerate(self.spec.passes):
            left = self._left_out(i) if use.params.whole_model else None
            if left is not None:
                message = f"`{use.name}` rewrites all blocks together, and its selector leaves out `{left.role}`"
                terms = use.selector.terms
                span = terms[0].span.cover(terms[-1].span)
                hint = f"write `{WHOLE}`, or parameters with which it takes blocks one by one"
                found.append(Diagnostic("QS053", message, span, hint, edits=(Edit(span, WHOLE),)))
        return found

    def _left_out(self, index: int) -> ModuleEntry | None:
        """The first linear of a block that the pass does not touch."""
        touched = set(self.reach[index])
        inside = (m for m, entry in enumerate(self.layout.modules) if not entry.only_kept)
        return next((self.layout.modules[m] for m in inside if m not in touched), None)

    def _idle(self) -> list[Diagnostic]:
        """Passes of which every module is kept."""
        found = []
        for i, use in enumerate(self.spec.passes):
            if all(self.schemes[m] is None for m in self.reach[i]):
                message = f"`{use.name}` has nothing to do: every layer that it selects is kept"
                hint = "remove it, or give those layers a scheme with a `layers` rule"
                found.append(Diagnostic("QS052", message, use.span, hint, "warning"))
        return found

    def _kernels(self) -> list[Diagnostic]:
        """Transforms for which a scheme has no kernel."""
        found: dict[tuple[int, str, str], Diagnostic] = {}
        for i, use in enumerate(self.spec.passes):
            alike: dict[tuple[str, int, int, str], tuple[ModuleEntry, Scheme]] = {}  # by kind, size and scheme's name
            for m in self.reach[i]:
                entry, scheme = self.layout.modules[m], self.schemes[m]
                if scheme is not None:
                    key = (entry.role.part, entry.in_features, entry.out_features, scheme.name)
                    alike.setdefault(key, (entry, scheme))
            for entry, scheme in alike.values():
                try:
                    kernels_for(scheme, use.params.rotations(entry, scheme))
                except NoKernel as missing:
                    place = f" on `{missing.where}`" if missing.where else ""
                    message = f"`{use.name}` cannot run with scheme `{scheme.name}`{place}: {missing.what}"
                    hint = "change the parameters of the pass, or the scheme"
                    problem = Diagnostic("QS043", message, use.span, hint)
                    found.setdefault((i, scheme.name, missing.what), problem)
        return list(found.values())
