"""What a recipe resolves to, as flat facts that are compared one by one: settings, and the fate of every module."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from itertools import pairwise
from typing import Any

from qspec.difference.changes import Fate
from qspec.formats import Scheme
from qspec.language.fields import settings
from qspec.language.layout import lay_out
from qspec.language.printer import operand_text, written
from qspec.language.selectors import ModuleTable, RoleTerm, Selector
from qspec.language.spec import Evaluation, Search, Spec
from qspec.models.family import Family, Role
from qspec.plan import Plan

Place = tuple[int | None, str]  # of a module: which of the blocks, None outside of them; part
Settings = Mapping[str, str]
FLOAT = "16 bits"


# --- settings ---


def settings_of(spec: Spec) -> dict[str, Settings]:
    """Block -> setting -> value as a recipe writes it: every setting, with its default too, of every block.

    What has no order in a recipe has none here: schemes and tasks are found by name, targets are sorted. What
    selectors decide is the modules': a search's offers too.
    """
    found: dict[str, Settings] = {
        "recipe": {"name": spec.name, "family": written(spec.families), "model": written(spec.model)},
        "calibrate": _block(spec.calibrate),
    }
    for scheme in spec.schemes.values():
        weights, activations = operands(scheme)
        found[f"scheme {scheme.name}"] = {"weights": weights, "activations": activations}
    if spec.search is not None:
        search = {key: value for key, value in _block(spec.search).items() if key != "offer"}
        found["search"] = search | {"loss": _loss(spec.search)}
    found |= requests(spec.evaluate)
    found["emit"] = {
        key: written(tuple(sorted(value)) if isinstance(value, tuple) else value)
        for key, value in _values(spec.emit).items()
    }
    return found


def _values(block: Any) -> dict[str, Any]:
    values = {key: getattr(block, setting.field) for key, setting in settings(type(block)).items()}
    return {key: value for key, value in values.items() if value is not None}


def _block(block: Any) -> Settings:
    return {key: written(value) for key, value in _values(block).items()}


def _loss(search: Search) -> str:
    if search.task is not None:
        return f"task {search.task}"
    return search.loss if search.text is None else f"{search.loss} on {search.text}"


def requests(evaluate: Evaluation) -> dict[str, Settings]:
    """What is measured, by what it is about: the first field of a request, or all of them where several share that."""
    found: dict[str, Settings] = {}
    for word, wanted in _values(evaluate).items():
        values = [
            {f.name: written(v) for f in fields(one) if (v := getattr(one, f.name)) is not None} for one in wanted
        ]
        abouts = Counter(next(iter(own.values())) for own in values)
        for own in values:
            (_, about), *rest = own.items()
            key = {word: about} if abouts[about] == 1 else {word: about, **dict(rest)}
            found[" ".join(f"{name} {value}" for name, value in key.items())] = dict(rest)
    return found


def operands(scheme: Scheme | None) -> tuple[str, str]:
    """Formats of weights and activations."""
    if scheme is None:
        return FLOAT, FLOAT
    return operand_text(scheme.weights), operand_text(scheme.activations) if scheme.activations else FLOAT


# --- modules ---


@dataclass(frozen=True)
class Modules:
    """The modules of a model, or of every model that some recipes fit.

    blocks: the first and the last block of each that is told apart, as a recipe counts them. parts: of a block, in
    order. selected: of each pass, the modules that its selector selects.
    """

    blocks: tuple[tuple[int, int], ...]
    fates: Mapping[Place, Fate]
    selected: tuple[frozenset[Place], ...]

    @cached_property
    def parts(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(part for block, part in self.fates if block is not None))

    def role(self, place: Place) -> str:
        """`blocks[3].mlp.down`, or `blocks[4..-4].mlp.down` of a stretch of blocks."""
        block, part = place
        if block is None:
            return part
        first, last = self.blocks[block]
        if len(self.blocks) == 1 and first != last:
            return f"blocks[*].{part}"
        return f"blocks[{first if first == last else f'{first}..{last}'}].{part}"


def planned_modules(plan: Plan) -> Modules:
    """Every module of a plan."""
    spec = plan.spec
    table = ModuleTable([m.entry for m in plan.modules], plan.shape.layers)
    joined = {m.entry.module: group for i in range(plan.shape.layers) for group in plan.merged(i) for m in group}
    fates: dict[Place, Fate] = {}
    for m, offered in zip(plan.modules, _offered(spec, table), strict=True):
        place = _place(m.entry.role)
        gemm = tuple(other.entry.role.local for other in joined.get(m.entry.module, ()))
        fates[place] = replace(_fate(m.scheme, offered), rotations=m.rotations, bits=m.bits, kernel=m.kernel, gemm=gemm)
    blocks = tuple((block, block) for block in range(plan.shape.layers))
    return Modules(blocks, fates, _selected(spec, table, tuple(fates)))


def outlined_modules(spec: Spec, family: Family, outline: Outline) -> Modules:
    """Every module of every model of the family, as far as an outline tells them apart; its sizes are not known."""
    entries = family.outline(outline.representatives, outline.experts)
    table = ModuleTable(entries, outline.layers)
    numbers = {block: at for at, block in enumerate(outline.representatives)}
    stretches = dict(zip(outline.experts, outline.of_experts, strict=True))
    places = [_place(entry.role, numbers, stretches) for entry in entries]
    schemes = [rule.scheme if rule else None for rule in lay_out(spec.rules, table).decided]
    fates = dict(zip(places, map(_fate, schemes, _offered(spec, table)), strict=True))
    return Modules(outline.blocks, fates, _selected(spec, table, places))


def _selected(spec: Spec, table: ModuleTable, places: Sequence[Place]) -> tuple[frozenset[Place], ...]:
    return tuple(frozenset(places[m] for m in table.select(use.selector)) for use in spec.passes)


def _fate(scheme: Scheme | None, offered: tuple[str, ...]) -> Fate:
    return Fate(scheme.name if scheme else None, *operands(scheme), offered)


def _offered(spec: Spec, table: ModuleTable) -> list[tuple[str, ...]]:
    """Of each module, the choices that the last offer for it gives."""
    found: list[tuple[str, ...]] = [()] * len(table.modules)
    for offer in spec.search.offers if spec.search else ():
        for m in table.select(offer.selector):
            found[m] = tuple(choice.name if choice else "keep" for choice in offer.choices)
    return found


def _place(role: Role, numbers: Mapping[int, int] | None = None, stretches: Mapping[int, str] | None = None) -> Place:
    """numbers: of blocks. stretches: what experts stand for."""
    if stretches is not None and role.expert is not None:
        local = role.part.replace("experts", f"experts[{stretches[role.expert]}]")
        return (None if role.block is None or numbers is None else numbers[role.block]), local
    return (role.block if numbers is None or role.block is None else numbers[role.block]), role.local


@dataclass(frozen=True)
class Outline:
    """The blocks of every model that some recipes fit: stretches in which no selector tells one block from the next.

    starts: block at which each but the last ones begins, from 0. ends: those that begin so many blocks before the end.
    experts: of a mixture, those at which a stretch begins, each standing for it.
    """

    starts: tuple[int, ...]
    ends: tuple[int, ...]
    experts: tuple[int, ...] = (0,)

    @classmethod
    def of(cls, specs: Sequence[Spec], families: Sequence[Family]) -> Outline:
        """Cut wherever an index of a selector begins or ends, and behind the dense blocks of a mixture of experts."""
        starts, ends = {0, *(family.experts.dense for family in families if family.experts)}, set[int]()
        for low, high in (index for spec in specs for selector in selectors(spec) for index in _indices(selector)):
            for cut in (low, high + 1 if high != -1 else None):
                if cut is not None:
                    (starts if cut >= 0 else ends).add(cut)
        inner = (
            index for spec in specs for selector in selectors(spec) for index in _indices(selector, slice(1, None))
        )
        experts = {0, *(cut for low, high in inner for cut in (low, high + 1) if cut >= 0)}
        return cls(tuple(sorted(starts)), tuple(sorted(ends)), tuple(sorted(experts)))

    @property
    def layers(self) -> int:
        """Blocks of the smallest model that has one in each stretch."""
        return self.starts[-1] + 1 - min(self.ends, default=0)

    @property
    def representatives(self) -> tuple[int, ...]:
        """One block of each stretch."""
        return (*self.starts, *(self.layers + end for end in self.ends))

    @property
    def of_experts(self) -> tuple[str, ...]:
        """What each of `experts` stands for: `3..5`, `6..` to the end, `*`."""
        if len(self.experts) == 1:
            return ("*",)
        ends = (
            f"{first}" if first == after - 1 else f"{first}..{after - 1}" for first, after in pairwise(self.experts)
        )
        return (*ends, f"{self.experts[-1]}..")

    @property
    def blocks(self) -> tuple[tuple[int, int], ...]:
        """The first and the last block of each stretch; those before the end are counted from there."""
        begins = (*self.starts, *self.ends)
        return tuple(zip(begins, (*(after - 1 for after in begins[1:]), -1), strict=True))


def selectors(spec: Spec) -> tuple[Selector, ...]:
    """Those of rules, passes and offers."""
    found = [*(rule.selector for rule in spec.rules), *(use.selector for use in spec.passes)]
    return (*found, *(offer.selector for offer in spec.search.offers)) if spec.search else tuple(found)


def _indices(selector: Selector, where: slice = slice(1)) -> list[tuple[int, int]]:
    """Of blocks, or of the steps `where`."""
    terms = [term for term in selector.terms if isinstance(term, RoleTerm)]
    parts = [part for term in terms for segment in term.segments[where] for part in segment.indices]
    return [(part.low, part.high) for part in parts if part.low is not None and part.high is not None]
