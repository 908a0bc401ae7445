"""What a search chooses between: for each input of a block, the schemes of the linears that read it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

from qspec.diagnostics import Span
from qspec.errors import InputError
from qspec.formats import Scheme
from qspec.language.selectors import Selector
from qspec.language.spec import Rule, Search
from qspec.plan import ModulePlan, Plan, gated, plan_module
from qspec.plan.text import ranges

EXPERT = re.compile(r"\[(\d+)\]")
Choice = Scheme | None  # None: the linear is kept
Layout = tuple[int, ...]  # for each unit, the index of its option


@dataclass(frozen=True)
class ProbeTarget:
    """What is probed at once: linears of one block that change their scheme together, by their names within it."""

    block: int
    parts: tuple[str, ...]

    def __str__(self) -> str:
        """`blocks[3].attention.{q,k,v}`, `blocks[3].mlp.experts[0..63].{gate,up}`."""
        where = self.parts[0].rpartition(".")[0]
        if experts := sorted({int(number) for part in self.parts for number in EXPERT.findall(part)}):
            where = EXPERT.sub(f"[{ranges(experts)}]", where)
        names = list(dict.fromkeys(part.rpartition(".")[2] for part in self.parts))
        last = names[0] if len(names) == 1 else f"{{{','.join(names)}}}"
        return f"blocks[{self.block}].{where}.{last}"


@dataclass(frozen=True)
class Option:
    """One fate of a unit's linears. probes: the targets that it quantizes, each with its scheme."""

    modules: tuple[ModulePlan, ...]
    probes: tuple[tuple[ProbeTarget, Scheme], ...]

    @property
    def choices(self) -> tuple[Choice, ...]:
        return tuple(m.scheme for m in self.modules)


@dataclass(frozen=True)
class Unit:
    """The linears that read one input, and down of all experts: what they cost together is the sum of nothing else.

    site: "blocks[3].attention.input". options: in the order of the offers; a pinned unit has one.
    """

    site: str
    options: tuple[Option, ...]

    @property
    def pinned(self) -> bool:
        return len(self.options) == 1


@dataclass(frozen=True)
class Space:
    """Every unit of a model, in forward order. plan: the recipe's own, before the search."""

    plan: Plan
    units: tuple[Unit, ...]

    def choices(self, layout: Layout) -> dict[str, Choice]:
        """Role -> scheme of every linear in the blocks."""
        found: dict[str, Choice] = {}
        for unit, index in zip(self.units, layout, strict=True):
            for module in unit.options[index].modules:
                found[str(module.entry.role)] = module.scheme
        return found

    def planned(self, layout: Layout) -> Plan:
        """The plan of a layout."""
        return assigned(self.plan, self.choices(layout))

    def uniform(self, scheme: Choice) -> Layout | None:
        """The layout in which every unit that is not pinned has this scheme; None where one may not."""
        found = []
        for unit in self.units:
            fits = [i for i, option in enumerate(unit.options) if set(option.choices) == {scheme}]
            if not fits and not unit.pinned:
                return None
            found.append(fits[0] if fits else 0)
        return tuple(found)

    def targets(self) -> dict[ProbeTarget, tuple[Scheme, ...]]:
        """Everything to probe, with its schemes: a unit without a choice needs no probe."""
        schemes: dict[ProbeTarget, dict[str, Scheme]] = {}
        for unit in self.units:
            if not unit.pinned:
                for option in unit.options:
                    for target, scheme in option.probes:
                        schemes.setdefault(target, {})[scheme.name] = scheme
        return {target: tuple(named.values()) for target, named in schemes.items()}

    @property
    def offered(self) -> tuple[Choice, ...]:
        """Every choice of some unit that is not pinned, in the order of the units."""
        units = [unit for unit in self.units if not unit.pinned]
        return tuple(dict.fromkeys(c for unit in units for option in unit.options for c in option.choices))


def assigned(plan: Plan, choices: Mapping[str, Choice]) -> Plan:
    """The plan with these schemes in place of those that its rules decided."""
    modules = (
        _module(plan, m, choices[str(m.entry.role)])
        if str(m.entry.role) in choices
        else plan_module(plan.spec, m.entry, m.rule, plan.shape.layers)
        for m in plan.modules
    )
    return replace(plan, modules=gated(modules))


def find_space(plan: Plan) -> Space:
    """The units of a recipe with a `search` block, on a model.

    Raises InputError where there is no such block, a pass rewrites the whole model, or its probe takes no experts.
    """
    search = plan.spec.search
    if search is None:
        raise InputError(
            "the recipe has no `search` block",
            where=plan.spec.source,
            hint="add one that offers schemes: search { offer w4, w8 on blocks[*].* }",
        )
    if whole := [use for use in plan.spec.passes if use.params.whole_model]:
        raise InputError(
            f"`{whole[0].name}` rewrites the whole model, so that no layer can be probed alone",
            where=whole[0].text,
            hint="use a pass that leaves the residual stream alone, such as quarot(residual = false)",
        )
    if plan.shape.experts is not None and search.probe != "forward":
        raise InputError(
            f"`probe {search.probe}` does not know mixtures of experts: a token's row is lost on its way through them",
            where=plan.spec.source,
            hint="write `probe forward`",
        )
    sites: dict[str, list[ModulePlan]] = {}
    for module in plan.modules:
        if not module.entry.only_kept:
            sites.setdefault(module.entry.stage, []).append(module)
    return Space(plan, tuple(_unit(plan, search, site, members) for site, members in sites.items()))


def _unit(plan: Plan, search: Search, site: str, members: Sequence[ModulePlan]) -> Unit:
    """Members that share a scheme have one choice: those of one GEMM where the search is fused, and always the experts
    that are offered the same."""
    together: dict[tuple[object, ...], list[tuple[ModulePlan, tuple[Choice, ...]]]] = {}
    for member in members:
        offers = _offered(search, member, plan.shape.layers)
        part = member.entry.role.part
        key = part.rpartition(".")[0] if search.fused else part
        together.setdefault((key, offers if member.entry.role.expert is not None else ()), []).append((member, offers))
    columns = [[member for member, _ in own] for own in together.values()]
    common = [  # never empty: QS037
        [choice for choice in own[0][1] if all(choice in others for _, others in own)] for own in together.values()
    ]
    return Unit(site, tuple(_option(plan, columns, row) for row in product(*common)))


def _offered(search: Search, module: ModulePlan, layers: int) -> tuple[Choice, ...]:
    """The last offer that selects the module; without one, what its rule says."""
    offers = [offer for offer in search.offers if offer.selector.matches(module.entry, layers)]
    return offers[-1].choices if offers else (module.scheme,)


def _option(plan: Plan, columns: Sequence[Sequence[ModulePlan]], row: Sequence[Choice]) -> Option:
    """Each column of linears with its choice."""
    chosen = list(zip(columns, row, strict=True))
    modules = gated(_module(plan, m, choice) for own, choice in chosen for m in own)
    return Option(modules, tuple((_target(own), choice) for own, choice in chosen if choice is not None))


def _target(modules: Sequence[ModulePlan]) -> ProbeTarget:
    role = modules[0].entry.role
    assert role.block is not None
    return ProbeTarget(role.block, tuple(m.entry.role.local for m in modules))


def _module(plan: Plan, module: ModulePlan, choice: Choice) -> ModulePlan:
    """The module under a rule of its own."""
    role = str(module.entry.role)
    text = f"layers {role} use {choice.name}" if choice else f"layers {role} keep"
    rule = Rule(Selector(role), choice, text, Span(0, 0, plan.spec.source))
    return plan_module(plan.spec, module.entry, rule, plan.shape.layers)
