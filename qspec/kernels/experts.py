"""A mixture of experts with packed weights: rows sorted by expert, two grouped GEMMs, and a weighted sum.

For x [n, d], the k experts that a router chose for each token, and their weights,

    y[t] = sum over j of weights[t, j] * down_e(f(gate_e(x[t])) up_e(x[t])),    e = chosen[t, j]

where f is silu or gelu (`models.inputs.Gated`), and each linear is quantized as it would be by itself. On a GPU gate
and up of all experts are one grouped GEMM, and so is down: W has the channels of one expert behind those of another,
and a tile of rows of X meets those of its expert. Nothing there waits for the device: grids have room for the worst
case, and a CUDA graph can capture all of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import accumulate

import torch
from torch import Tensor, nn

from qspec.catalog import ExpertsKernel, GemmKernel
from qspec.kernels import reference
from qspec.kernels.gemm_sizes import row_tile
from qspec.kernels.generate import KernelLibrary, library
from qspec.kernels.linear import QuantLinear
from qspec.kernels.merged import GatedPart
from qspec.kernels.packing import PackedLinear
from qspec.kernels.reference import PreparedInput, ReferenceWeight
from qspec.models.decoder import Decoder
from qspec.models.decoder_block import DecoderBlock
from qspec.models.inputs import LayerInput

SORT, SUM = ExpertsKernel("sort"), ExpertsKernel("sum")
ALIGNED = 4  # int32 of 16 bytes, from which kernels load at once


@dataclass(frozen=True)
class SortedRows:
    """Where the pairs of token and expert lie.

    place: int32 [n, k], the row of each. tiles: int32 [1 + 2 tiles of `rows` rows], how many of them have rows, and of
    each its expert and how many of its rows are of a pair; live: int32 [1], the rows of all these. total: rows of all
    tiles that there may be.
    """

    place: Tensor
    tiles: Tensor
    live: Tensor
    rows: int
    total: int


def sort_rows(
    kernels: KernelLibrary, gemm: GemmKernel, prepared: PreparedInput, chosen: Tensor, experts: int
) -> tuple[PreparedInput, SortedRows]:
    """A copy of each token's prepared row for each expert that it chose, sorted by expert, for a grouped GEMM."""
    values, device = prepared.values, prepared.values.device
    rows = row_tile(chosen.numel() / experts, gemm)
    tiles = chosen.numel() // rows + min(experts, chosen.numel())
    total = tiles * rows
    rank, counts, place, of_tiles, live = zeros((chosen.numel(), experts, chosen.numel(), 1 + 2 * tiles, 1), device)
    place = place.view(chosen.shape)
    ordered = torch.empty(total, values.shape[1], dtype=values.dtype, device=device)
    scale, zero = (
        None if part is None else torch.empty(part.shape[0], total, dtype=part.dtype, device=device)
        for part in (prepared.scale, prepared.zero)
    )
    others = (values, prepared.scale, prepared.zero, rank, counts, place, of_tiles, live, ordered, scale, zero)
    kernels.module(SORT).run(chosen.contiguous(), *others, rows)
    shape = torch.Size((total, values.shape[1]))
    return PreparedInput(ordered, scale, zero, shape, prepared.dtype), SortedRows(place, of_tiles, live, rows, total)


def zeros(sizes: Sequence[int], device: torch.device) -> list[Tensor]:
    """int32 tensors of these sizes, each from 16 bytes on, in one piece of memory.

    A pass that is made to compile (`kernels.compiling`) launches some kernels without those whose results they read:
    of zeros they make no tile, and rows that there are.
    """
    places = [0, *accumulate(-(-size // ALIGNED) * ALIGNED for size in sizes)]
    memory = torch.zeros(places[-1], dtype=torch.int32, device=device)
    return [memory[place : place + size] for place, size in zip(places, sizes, strict=False)]


def multiply(
    kernels: KernelLibrary, stack: PackedLinear, experts: int, prepared: PreparedInput, where: SortedRows
) -> Tensor:
    """Y [rows, N] of sorted rows, each by the linear of its expert; of a gated stack [rows, N/2]."""
    gemm = stack.kernels.gemm
    channels = gemm.channels(stack.out_features // experts)
    out = torch.empty(where.total, channels, dtype=prepared.dtype, device=prepared.values.device)
    others = {"activation_zero": prepared.zero, "weight_zero": stack.zero, "weight_unit": stack.unit}
    kernels.module(gemm).run(
        prepared.values,
        prepared.scale,
        stack.codes,
        stack.scale,
        stack.bias,
        where.tiles,
        out,
        where.rows,
        **others,
    )
    return out


def sum_rows(kernels: KernelLibrary, y: Tensor, where: SortedRows, weights: Tensor) -> Tensor:
    """y[t] = sum over j of weights[t, j] y[place[t, j]], in float32 and in their order; in the dtype of y."""
    out = torch.empty(where.place.shape[0], y.shape[1], dtype=y.dtype, device=y.device)
    kernels.module(SUM).run(y, where.place, weights.contiguous(), out)
    return out


@cache
def _break_graphs() -> None:
    """Breaks compiled graphs at a mixture. A decorator would import torch._dynamo for every model, 1.4 s."""
    QuantExperts.forward = torch.compiler.disable(QuantExperts.forward)  # type: ignore[method-assign, no-untyped-call]


class QuantExperts(nn.Module):
    """y [..., d] of x [..., d] through the experts that a router chose, as this module's docstring has it.

    gate_up, down: the stacks of all experts. On a CPU the reference runs, expert by expert.
    """

    def __init__(self, gate_ups: Sequence[PackedLinear], downs: Sequence[PackedLinear]) -> None:
        """Of each expert gate and up as one gated linear, and down."""
        super().__init__()
        self.experts = len(downs)
        self.gate_up, self.down = QuantLinear(stacked(gate_ups)), QuantLinear(stacked(downs))
        self._library = library(None)
        _break_graphs()

    def forward(self, given: LayerInput, chosen: Tensor, weights: Tensor) -> Tensor:
        """given: x [..., d], or what it is computed of; chosen: integers [..., k]; weights: float32 [..., k]."""
        x = given if isinstance(given, Tensor) else given.x
        chosen, weights = chosen.reshape(-1, chosen.shape[-1]), weights.reshape(-1, weights.shape[-1]).float()
        if x.numel() == 0:
            return torch.empty_like(x)
        run = self._reference if self.down.execution == "reference" else self._kernels
        return run(self.gate_up.prepare(given), chosen, weights).reshape(x.shape)

    def _kernels(self, prepared: PreparedInput, chosen: Tensor, weights: Tensor) -> Tensor:
        with torch.cuda.device(chosen.device):
            ordered, where = sort_rows(self._library, self.gate_up.kernels.gemm, prepared, chosen, self.experts)
            inner = multiply(self._library, self.gate_up.packed(), self.experts, ordered, where)
            y = multiply(self._library, self.down.packed(), self.experts, self.down.prepare(inner, where.live), where)
            return sum_rows(self._library, y, where, weights)

    def _reference(self, prepared: PreparedInput, chosen: Tensor, weights: Tensor) -> Tensor:
        gate_up, down = self.gate_up.packed(), self.down.packed()
        y = torch.empty(*chosen.shape, self.down.rows // self.experts, dtype=prepared.dtype)
        for expert in sorted(set(chosen.flatten().tolist())):
            token, slot = (chosen == expert).nonzero(as_tuple=True)
            inner = reference.multiply(self._weight(gate_up, expert), reference.rows_of(prepared, token))
            y[token, slot] = reference.multiply(self._weight(down, expert), self.down.prepare(inner))
        total = torch.zeros(chosen.shape[0], y.shape[2])
        for slot in range(chosen.shape[1]):
            total = total + y[:, slot].float() * weights[:, slot, None]
        return total.to(prepared.dtype)

    def _weight(self, stack: PackedLinear, expert: int) -> ReferenceWeight:
        return ReferenceWeight.of(self.part(stack, expert))

    def part(self, stack: PackedLinear, expert: int) -> PackedLinear:
        """An expert's linear of a stack."""
        channels = stack.out_features // self.experts
        return stack.channels(expert * channels, (expert + 1) * channels)


def stacked(parts: Sequence[PackedLinear]) -> PackedLinear:
    """The linears of all experts as one, for a grouped GEMM: they have one shape, kernel and transform."""
    kernels = parts[0].kernels.of_experts()
    return PackedLinear.merged([replace(part, kernels=kernels) for part in parts])


def install(decoder: Decoder) -> Decoder:
    """The decoder, its mixtures of packed experts computed by grouped GEMMs, where `grouped` has them."""
    for block in decoder.blocks:
        if block.mixture is not None:
            block.grouped = grouped(block, block.mixture.count)
    return decoder


def grouped(block: DecoderBlock, count: int) -> QuantExperts | None:
    """The experts of a block as one module, whose memory each expert's own linears share from now on.

    None where experts differ in kernels or in the transform of their input, gate and up are not one gated GEMM, or
    linears are kept.
    """
    gates, downs = ([block.part(f"mlp.experts[{e}].{name}") for e in range(count)] for name in ("gate", "down"))
    pairs = [gate.whole for gate in gates if isinstance(gate, GatedPart)]
    plain = [down for down in downs if isinstance(down, QuantLinear)]
    if not (len(pairs) == len(plain) == count and _alike(pairs) and _alike(plain)):
        return None
    made = QuantExperts([one.packed() for one in pairs], [one.packed() for one in plain])
    for linears, stack in ((pairs, made.gate_up.packed()), (plain, made.down.packed())):
        for expert, linear in enumerate(linears):
            linear.share(made.part(stack, expert))
    return made


def _alike(linears: Sequence[QuantLinear]) -> bool:
    first = linears[0]
    grouped = not first.kernels.gemm.pairs or first.kernels.gemm.activation_bits == 16
    return grouped and all(one.kernels == first.kernels and one.transform is first.transform for one in linears)
