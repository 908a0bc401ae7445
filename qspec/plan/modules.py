"""What happens to one module: its scheme, passes and kernels, and the true bits that it takes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from qspec.catalog import GATE, LayerKernels
from qspec.formats import Scheme, TensorFormat
from qspec.language.spec import PassUse, Rule
from qspec.models.family import ROUTER, ModuleEntry

FLOAT_BITS = 16  # a module that is kept; and every module before compilation
ROUTER_BITS = 32  # of a router, whose choices one rounding can turn around


@dataclass(frozen=True)
class ModulePlan:
    """One module's fate. rule: the statement that decided (None: no rule). passes: those that touch it, in order; of
    a module that is kept, those over the whole model.
    """

    entry: ModuleEntry
    rule: Rule | None
    scheme: Scheme | None
    passes: tuple[PassUse, ...]
    kernels: LayerKernels | None

    def joins(self, other: ModulePlan) -> bool:
        """Whether they are one GEMM, as linears of one input and MLP."""
        return (self.kernels, self.passes, self.entry.bias) == (other.kernels, other.passes, other.entry.bias)

    @cached_property
    def stored_bits(self) -> int:
        """Codes, scales and zero points, or 16-bit floats; without bias and online transform."""
        if self.scheme is None:
            return self.entry.weights * (ROUTER_BITS if self.entry.role.part == ROUTER else FLOAT_BITS)
        return self.scheme.weights.stored_bits(self.entry.out_features, self.entry.in_features)

    @property
    def bits(self) -> float:
        return self.stored_bits / self.entry.weights

    @property
    def rotations(self) -> tuple[int, ...]:
        """Block sizes of the rotations of its input that are computed online."""
        return self.kernels.rotations if self.kernels else ()

    def expected(self, done: Collection[PassUse]) -> tuple[tuple[int, ...], TensorFormat | None]:
        """Of a linear after those of its passes that are among `done`: block sizes of the rotations of its input, and
        the format of its codes, None while it has none."""
        uses = [use for use in self.passes if use in done]
        if self.scheme is None:
            return (), None
        quantized = any(use.params.quantizes for use in uses)
        return rotations_of(uses, self.entry, self.scheme), self.scheme.weights if quantized else None

    @property
    def kernel(self) -> str:
        """Names of the kernels that will run it, the activation quantization kernel first; "bf16" where it is kept."""
        if self.kernels is None:
            return "bf16"
        row = [self.kernels.row.name] if self.kernels.row else []
        return " + ".join([*row, self.kernels.gemm.name])


def gemms(modules: Iterable[ModulePlan]) -> tuple[tuple[ModulePlan, ...], ...]:
    """The linears of a block, together where they are one GEMM: of one input and MLP, with one scheme and fate."""
    groups: list[list[ModulePlan]] = []
    inputs: dict[tuple[object, ...], list[list[ModulePlan]]] = {}
    for m in modules:
        near = inputs.setdefault((m.entry.site, m.entry.mlp), [])
        own = next((group for group in near if m.kernels is not None and m.joins(group[0])), None)
        if own is None:
            own = []
            groups.append(own)
            near.append(own)
        own.append(m)
    return tuple(map(tuple, groups))


def gated(modules: Iterable[ModulePlan]) -> tuple[ModulePlan, ...]:
    """Linears, as `plan_module` has them, with f(gate) up in the GEMM of gate and up where they are one.

    Down reads what that gives; elsewhere its activation quantization kernel computes it of the two.
    """
    modules = tuple(modules)
    made = {
        m.entry.mlp
        for group in gemms(modules)
        for m in group[:1]
        if [linear.entry.role.name for linear in group] == ["gate", "up"] and m.entry.out_features % GATE == 0
    }
    known: dict[tuple[int, str], LayerKernels] = {}  # most linears have their kernels in common

    def fused(kernels: LayerKernels, entry: ModuleEntry) -> LayerKernels:
        key = (id(kernels), entry.role.name)
        if key not in known:
            known[key] = kernels.plain() if entry.role.name == "down" else kernels.gated(entry.activation)
        return known[key]

    return tuple(
        ModulePlan(m.entry, m.rule, m.scheme, m.passes, fused(m.kernels, m.entry))
        if m.kernels and m.entry.mlp in made
        else m
        for m in modules
    )


def stored_bits(modules: Iterable[ModulePlan]) -> int:
    """Bits of these modules: codes, scales, zero points, kept weights, and the online transforms of their inputs.

    Rotations are float16 and permutations int32, one of each for every input that is transformed, and one for those of
    all experts' down: the bits of the linears of different inputs add up.
    """
    modules = tuple(modules)
    inputs = {(m.entry.stage, m.rotations): m.entry.in_features for m in modules if m.rotations}
    transforms = sum(
        sum(block**2 * 16 for block in rotations) + (channels * 32 if len(rotations) > 1 else 0)
        for (_, rotations), channels in inputs.items()
    )
    return sum(m.stored_bits for m in modules) + transforms


def active(modules: Iterable[ModulePlan], of: Callable[[ModulePlan], int]) -> int:
    """The sum of `of` over what a token uses of these modules: of experts the share that it takes, rounded up."""
    sums: dict[tuple[int, int], int] = {}
    for m in modules:
        share = (m.entry.top_k, m.entry.experts)
        sums[share] = sums.get(share, 0) + of(m)
    return sum(-(-total * top_k // experts) for (top_k, experts), total in sums.items())


def active_bits(modules: Sequence[ModulePlan]) -> int:
    """Of `stored_bits` of these modules those that a token touches."""
    transforms = stored_bits(modules) - sum(m.stored_bits for m in modules)
    return active(modules, lambda m: m.stored_bits) + transforms


def weights_of(modules: Iterable[ModulePlan]) -> int:
    """All of these modules together."""
    return sum(m.entry.weights for m in modules)


def bits_text(blocks: float, model: float, digits: int = 2) -> str:
    """Bits per weight as people read them: a figure of the blocks never stands without the whole model's."""
    return f"{blocks:.{digits}f} in the blocks, {model:.{digits}f} in the whole model"


def tensor_bits(modules: Iterable[ModulePlan]) -> int:
    """The same with their biases: everything that an artifact stores for them."""
    modules = tuple(modules)
    return stored_bits(modules) + sum(bias_of(m) * (FLOAT_BITS if m.scheme is None else 32) for m in modules)


def bias_of(module: ModulePlan) -> int:
    return module.entry.out_features if module.entry.bias else 0


def rotations_of(uses: Iterable[PassUse], entry: ModuleEntry, scheme: Scheme) -> tuple[int, ...]:
    """Block sizes of the rotations that these passes leave online on a linear's input: the last one's that has any."""
    online = [sizes for use in uses if (sizes := use.params.rotations(entry, scheme))]
    return online[-1] if online else ()
