"""The plan: what will happen to every module, decided from the recipe and config.json alone. No torch, no weights."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

from qspec.catalog import ActivationKernel, GemmKernel, LayerKernels, kernels_for
from qspec.diagnostics import Diagnostic
from qspec.errors import InputError
from qspec.fitting import fitted, require_groups, require_rotations
from qspec.formats import Scheme
from qspec.language.layers import verify
from qspec.language.layout import Layout, RuleCount
from qspec.language.spec import Calibration, PassUse, Rule, Spec
from qspec.models.family import DecoderShape, Family, ModuleEntry
from qspec.models.registry import FAMILIES
from qspec.plan.modules import (
    FLOAT_BITS,
    ModulePlan,
    active,
    active_bits,
    bias_of,
    gated,
    gemms,
    rotations_of,
    stored_bits,
    tensor_bits,
    weights_of,
)

_Known = dict[tuple[object, ...], tuple[LayerKernels, tuple[PassUse, ...]]]
HESSIAN_BYTES = 1 << 30  # of experts' Hessians that one pass over the calibration data sums up, or one Hessian
BATCH_TOKENS = 4096  # calibration tokens in one forward pass
NORM_BITS = 32  # norm gains stay in float32, smoothing folds scales into them; routers' biases too


@dataclass(frozen=True, repr=False)
class Plan:
    """Frozen decisions for every module of a model of this shape. calibrate: the recipe's, as the model takes it.

    notice: where another model's config had to serve, says so. As text it is what `qspec plan` prints.
    """

    spec: Spec
    calibrate: Calibration
    family: str
    shape: DecoderShape
    modules: tuple[ModulePlan, ...]
    rules: tuple[RuleCount, ...]
    warnings: tuple[Diagnostic, ...]
    notice: str | None = None

    def __str__(self) -> str:
        from qspec.plan.text import render

        return render(self)

    def __repr__(self) -> str:
        bits = f"{self.bits_per_weight:.3f} bits per weight in the blocks"
        return f"<Plan {self.spec.name}: {self.family}, {self.shape.layers} blocks, {bits}>"

    def _repr_html_(self) -> str:
        """For notebooks."""
        from qspec.plan.text import html

        return html(self)

    @cached_property
    def _blocks(self) -> Mapping[int | None, tuple[ModulePlan, ...]]:
        blocks: dict[int | None, list[ModulePlan]] = {}
        for m in self.modules:
            blocks.setdefault(m.entry.role.block, []).append(m)
        return {index: tuple(modules) for index, modules in blocks.items()}

    def block(self, index: int) -> tuple[ModulePlan, ...]:
        """The linears of one block in forward order."""
        return self._blocks.get(index, ())

    def merged(self, index: int) -> tuple[tuple[ModulePlan, ...], ...]:
        """The linears of a block that are computed as one GEMM, where these are several."""
        return tuple(group for group in gemms(self.block(index)) if len(group) > 1)

    @cached_property
    def _gemms(self) -> Mapping[str, str]:
        groups = (group for index in range(self.shape.layers) for group in self.merged(index))
        return {m.entry.module: group[0].entry.module for group in groups for m in group}

    def gemm(self, module: ModulePlan) -> str | None:
        """The first module of the GEMM that a linear is part of; None where it is one of its own."""
        return self._gemms.get(module.entry.module)

    def module(self, role: str) -> ModulePlan | None:
        """By any name that a recipe may call it: `head` is the embedding where they are one tensor."""
        return next((m for m in self.modules if any(str(name.role) == role for name in m.entry.names)), None)

    def kernels(self) -> tuple[ActivationKernel | GemmKernel, ...]:
        """Every distinct kernel that some layer will run, sorted by name."""
        kernels: dict[str, ActivationKernel | GemmKernel] = {}
        for module in self.modules:
            if module.kernels is not None:
                for kernel in (module.kernels.row, module.kernels.gemm):
                    if kernel is not None:
                        kernels[kernel.name] = kernel
        return tuple(kernels[name] for name in sorted(kernels))

    def pass_counts(self) -> tuple[int, ...]:
        """How many modules each pass touches."""
        alike = Counter(id(m.passes) for m in self.modules)
        passes = {id(m.passes): m.passes for m in self.modules}
        counts = Counter(dict.fromkeys(self.spec.passes, 0))
        for key, uses in passes.items():
            counts.update(dict.fromkeys(uses, alike[key]))
        return tuple(counts[use] for use in self.spec.passes)

    def rules_for(self, module: ModulePlan) -> tuple[Rule, ...]:
        """Every rule that matches a module, in the recipe's order; the last one decides."""
        layers = self.shape.layers
        return tuple(rule for rule in self.spec.rules if rule.selector.matches(module.entry, layers))

    @cached_property
    def block_weights(self) -> int:
        """Weights of the linears in the blocks; embedding and head are not among them."""
        return self._summed(weights_of)

    @cached_property
    def active_weights(self) -> int:
        """Those of `block_weights` that a token is multiplied by: of experts its own alone."""
        return self._summed(lambda block: active(block, lambda m: m.entry.weights))

    @cached_property
    def active_bits(self) -> int:
        """What is stored of these, as `bits_per_weight` counts them: bits that a token touches in the blocks."""
        return self._summed(active_bits)

    @property
    def bits_per_weight(self) -> float:
        """True bits of a block weight: codes, scales, zero points and online transforms, kept linears at 16."""
        return self._summed(stored_bits) / self.block_weights

    @property
    def bits_per_weight_model(self) -> float:
        """The same of an average weight of the whole model: embedding and head, which are kept at 16, count too."""
        return self._summed(stored_bits, outer=True) / self._summed(weights_of, outer=True)

    @cached_property
    def bytes_before(self) -> int:
        """The whole model in 16 bits."""
        weights = self._summed(lambda block: sum(m.entry.weights + bias_of(m) for m in block), outer=True)
        return (weights + self._vectors) * FLOAT_BITS // 8

    @property
    def bytes_after(self) -> int:
        """The tensors of the artifact."""
        return self.bits_after // 8

    @cached_property
    def bits_after(self) -> int:
        return self._summed(tensor_bits, outer=True) + self._vectors * NORM_BITS

    @property
    def _vectors(self) -> int:
        return FAMILIES[self.family].vectors(self.shape)

    def _summed(self, of: Callable[[Sequence[ModulePlan]], int], *, outer: bool = False) -> int:
        """The sum of `of` over the blocks, and over embedding and head."""
        blocks = sum(of(block) * len(places) for block, places in self.alike_blocks)
        return blocks + (of(self._outer) if outer else 0)

    @property
    def _outer(self) -> tuple[ModulePlan, ...]:
        return self._blocks.get(None, ())

    @property
    def calibration_tokens(self) -> int:
        return self.calibrate.rows * self.calibrate.length * (1 if self.shape.block is None else 2)

    def linears(self) -> Iterable[ModulePlan]:
        """Those of the blocks, kept ones too."""
        return (m for m in self.modules if m.entry.role.block is not None)

    @cached_property
    def alike_blocks(self) -> tuple[tuple[tuple[ModulePlan, ...], tuple[int, ...]], ...]:
        """Blocks of linears of one size and fate, one of them with the indices of all: of what is the same for all of
        these, one is looked at."""
        found: dict[tuple[object, ...], list[int]] = {}
        for index in range(self.shape.layers):
            fates = (
                (m.entry.out_features, m.entry.in_features, id(m.scheme), id(m.kernels), id(m.passes))
                for m in self.block(index)
            )
            found.setdefault(tuple(fates), []).append(index)
        return tuple((self.block(own[0]), tuple(own)) for own in found.values())


def make_plan(spec: Spec, family: Family, shape: DecoderShape, *, standin: bool = False) -> Plan:
    """Decides every module. standin: whether the model stands in for the recipe's, so that calibration gives way to it.

    Raises RecipeError, with the lines concerned, where the recipe does not fit this model; InputError for sizes that
    do not.
    """
    if family.name not in spec.families:
        known = " or ".join(spec.families)
        raise InputError(
            f"the recipe is for the family {known}, the checkpoint is {family.name}",
            where=spec.source,
            hint=f"add {family.name} to `family` in the recipe, or give a checkpoint of {known}",
        )
    layout = verify(spec, family.modules(shape), shape.layers)
    calibrate = fitted(spec.calibrate, shape.max_length, standin=standin, where=spec.source)
    require_groups(_pairs(spec, layout), spec.source)
    for use in spec.passes:
        use.params.check(shape)
    uses: list[list[PassUse]] = [[] for _ in layout.modules]
    places = [layout.table.select(use.selector) for use in spec.passes]
    for use, touched in zip(spec.passes, places, strict=True):
        for m in touched:
            uses[m].append(use)
        require_rotations(use, _kinds(layout, touched))
        if use.params.rescales and shape.values_normed:
            _require_producers(use, [layout.modules[m] for m in touched])
    modules = gated(map(partial(_planned, spec, {}), layout.modules, layout.decided, uses))
    return Plan(spec, calibrate, family.name, shape, modules, layout.counts, layout.warnings)


def _require_producers(use: PassUse, touched: Iterable[ModuleEntry]) -> None:
    """Raises InputError for the linear behind attention, of a model that norms each head's values."""
    behind = next((entry for entry in touched if entry.role.part == "attention.o"), None)
    if behind is not None:
        raise InputError(
            f"{use.name} has nothing to fold the scale of this input into: the model norms its values",
            where=str(behind.role),
            hint=f"apply {use.name} on blocks[*].attention.{{q,k,v}} and blocks[*].mlp.*",
        )


def _kinds(layout: Layout, places: Iterable[int]) -> list[tuple[ModuleEntry, Scheme]]:
    """Linears with their schemes, of those that are alike in part, size and scheme one."""
    found: dict[tuple[str, int, int], tuple[ModuleEntry, Scheme]] = {}
    for m in places:
        entry, rule = layout.modules[m], layout.decided[m]
        if rule is not None and rule.scheme is not None:
            found.setdefault((entry.role.part, entry.in_features, id(rule.scheme)), (entry, rule.scheme))
    return list(found.values())


def _pairs(spec: Spec, layout: Layout) -> list[tuple[ModuleEntry, Scheme]]:
    """Linears of the blocks with the scheme that each gets, and with those that a search offers it."""
    pairs = _kinds(layout, range(len(layout.modules)))
    for offer in spec.search.offers if spec.search else ():
        for m in layout.table.select(offer.selector):
            pairs += [(layout.modules[m], choice) for choice in offer.choices if choice is not None]
    return [(entry, scheme) for entry, scheme in pairs if not entry.only_kept]


def plan_module(spec: Spec, entry: ModuleEntry, rule: Rule | None, layers: int) -> ModulePlan:
    """The fate of one module under the rule that decides it. Raises InputError where no kernel computes it."""
    return _planned(spec, {}, entry, rule, [use for use in spec.passes if use.selector.matches(entry, layers)])


def _planned(spec: Spec, known: _Known, entry: ModuleEntry, rule: Rule | None, uses: Sequence[PassUse]) -> ModulePlan:
    """The same, with the passes whose selectors select it. known: kernels and passes that others have in common."""
    scheme = rule.scheme if rule else None
    if scheme is None:
        return ModulePlan(entry, rule, None, tuple(use for use in spec.passes if use.params.whole_model), None)
    if entry.only_kept:
        raise InputError(
            f"{entry.role} can only be kept: no kernel computes it in {scheme.label}",
            where=rule.text if rule else spec.source,
            hint=f"add `layers {entry.role} keep`",
        )
    key = (id(scheme), entry.source, entry.role.part, entry.in_features, *map(id, uses))
    if key not in known:
        kernels = kernels_for(scheme, rotations_of(uses, entry, scheme), entry.source)
        kernels.check(entry.in_features, str(entry.role))
        known[key] = kernels, tuple(uses)
    kernels, own = known[key]
    return ModulePlan(entry, rule, scheme, own, kernels)
