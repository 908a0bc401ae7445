"""How long linears and their inputs take on a GPU: measured where `qspec tune` measured, or else by its limits.

    activation quantization    launch + bytes moved / bandwidth
    gate         where gate and up are two GEMMs, or kept: one row more for down's activation quantization to read; or,
                 where it has none (16 bits; gate's stand for down's), launch + bytes moved / bandwidth
    GEMM         the time in the GPU's table (`kernels.tuned`) of its kernel, N, K and bucket of M; or, without one,
                 launch + max(bytes moved / bandwidth, operations / rate)

Limits and launches are as measured (docs/search.md). It weighs the choices of a search against each other; it does not
promise a time. Times are whole nanoseconds, so that sums are exact whatever their order.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qspec.kernels import tuned
from qspec.plan import FLOAT_BITS, ModulePlan, gemms

if TYPE_CHECKING:
    import torch

REFERENCE = "NVIDIA H100 80GB HBM3"  # stands in where this machine has no GPU, and for the limits of unknown ones
BANDWIDTHS = {REFERENCE: 3000, "NVIDIA H200": 4300}  # bytes a nanosecond: a copy
# Operations a nanosecond, by the bits of the GEMMs: bfloat16, as which 4-bit floats are multiplied on these GPUs,
# or int8 and fp8.
RATES = {16: 790_000, 8: 1_200_000}
LAUNCH = 2000  # nanoseconds of a kernel that does nothing


@dataclass(frozen=True)
class TimedGemm:
    """The GEMM of some linears of one input for X [tokens, K]. measured: whether the table of `gpu` has it."""

    kernel: str
    channels: int  # N
    columns: int  # K
    tokens: int
    gpu: str
    nanoseconds: int
    measured: bool


def timed_gpu(device: torch.device) -> str:
    """The GPU whose times count for a search on this device: its own, or `REFERENCE` on a CPU."""
    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else REFERENCE


def pass_time(modules: Iterable[ModulePlan], tokens: int, gpu: str) -> int:
    """Nanoseconds of linears of one block for X [tokens, in]: their inputs, each made once, and their GEMMs.

    Experts of one fate count as one grouped GEMM, whose rows are each token's `top_k` and whose weights are those of
    as many experts as there are rows for.
    """
    modules = tuple(modules)
    alike = _alike(modules)
    inputs = {(m.entry.stage, m.kernels and m.kernels.row): m for m in alike.values()}
    times = [_input(m, _rows(m, tokens), gpu) for m in inputs.values()]
    times += [_gate(m, tokens * m.entry.top_k, gpu) for m in alike.values() if m.entry.role.name == "gate"]
    return sum(times) + sum(one.nanoseconds for one in timed_gemms(modules, tokens, gpu))


def timed_gemms(modules: Iterable[ModulePlan], tokens: int, gpu: str) -> list[TimedGemm]:
    """The GEMMs of linears of one block; those of experts of one fate are one."""
    modules = tuple(modules)
    counts = Counter(map(_fate, modules))
    return [gemm(group, tokens, gpu, counts[_fate(group[0])]) for group in gemms(_alike(modules).values())]


def _fate(module: ModulePlan) -> tuple[object, ...]:
    """Equal for linears of different experts that are one grouped GEMM; a linear's own where it is no expert's."""
    entry = module.entry
    return (entry.role.block, entry.role.part, module.kernels, module.passes, module.stored_bits)


def _alike(modules: Iterable[ModulePlan]) -> dict[tuple[object, ...], ModulePlan]:
    """One linear of each fate, the first expert's."""
    found: dict[tuple[object, ...], ModulePlan] = {}
    for m in modules:
        found.setdefault(_fate(m), m)
    return found


def _rows(module: ModulePlan, tokens: int) -> int:
    """Of the input that one kernel makes: of experts' hidden states, one for each of a token's experts."""
    return tokens * module.entry.top_k if module.entry.stage != module.entry.site else tokens


def _input(module: ModulePlan, tokens: int, gpu: str) -> int:
    """Norm, rotations and rounding; nothing for an input that is used as it is."""
    rotated = module.kernels is not None and module.rotations
    if not rotated and _bits(module) == FLOAT_BITS and module.entry.source != "rmsnorm":
        return 0
    return LAUNCH + _memory(tokens * module.entry.in_features * (FLOAT_BITS + _bits(module)), gpu)


def _gate(gate: ModulePlan, tokens: int, gpu: str) -> int:
    """f(gate) up where no GEMM gives it. What reads it is not known here."""
    if gate.kernels is not None and gate.kernels.gemm.gated:
        return 0
    row = tokens * gate.entry.out_features * FLOAT_BITS
    return LAUNCH + _memory(3 * row, gpu) if _bits(gate) == FLOAT_BITS else _memory(row, gpu)


def basis(summed: Sequence[TimedGemm]) -> str:
    """What the times of these rest on, in words."""
    count, gpu = sum(gemm.measured for gemm in summed), summed[0].gpu
    limits = gpu if gpu in BANDWIDTHS else REFERENCE
    return f"{count} of {len(summed)} GEMMs as measured on {gpu}, the rest by the limits of {limits}"


def gemm(group: Sequence[ModulePlan], tokens: int, gpu: str, experts: int = 1) -> TimedGemm:
    """Of linears that are computed as one (`plan.gemms`), or of so many experts that are alike, of all that there
    are."""
    first = group[0]
    channels, columns = sum(m.entry.out_features for m in group), first.entry.in_features
    tokens = -(-tokens * first.entry.top_k * experts // first.entry.experts)
    dense = first.entry.role.expert is None
    measured = dense and first.kernels and tuned.microseconds(gpu, first.kernels.gemm, channels, columns, tokens)
    if measured:
        time = round(1000 * measured)
    else:
        written = first.kernels.gemm.channels(channels) if first.kernels else channels
        touched = min(experts, tokens) * sum(m.stored_bits for m in group)
        moved = touched + tokens * (columns * _bits(first) + written * FLOAT_BITS)
        floats = _bits(first) == FLOAT_BITS or (first.kernels is not None and first.kernels.gemm.pairs)
        rate = RATES[FLOAT_BITS if floats else 8]
        time = LAUNCH + max(_memory(moved, gpu), -(-2 * tokens * channels * columns // rate))
    return TimedGemm(first.kernel.rpartition(" ")[2], channels, columns, tokens, gpu, time, bool(measured))


def _bits(module: ModulePlan) -> int:
    """Of each value of the input that the GEMM reads."""
    return module.kernels.row.bits if module.kernels and module.kernels.row else FLOAT_BITS


def _memory(bits: int, gpu: str) -> int:
    return -(-bits // (8 * BANDWIDTHS.get(gpu, BANDWIDTHS[REFERENCE])))
