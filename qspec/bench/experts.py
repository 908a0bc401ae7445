"""Times of a mixture's grouped GEMMs on a CUDA GPU, beside torch's in bfloat16 and a package's where it is installed.

Experts are many, so that their weights come from memory in every call. Peers get rows that are sorted already.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from qspec import numerics
from qspec.bench.data import FORMATS
from qspec.bench.experts_data import BASE, MIXTURES, ExpertsCell, ExpertsRun, Mixture
from qspec.bench.measure import graph_time, need_gpu
from qspec.catalog import kernels_for
from qspec.kernels import experts, launch
from qspec.kernels.generate import KernelLibrary
from qspec.kernels.packing import PackedLinear
from qspec.progress import Progress
from qspec.report.environment import environment

Pair = tuple[Tensor, Tensor]  # what gate and up of all experts read, and what down reads
Linears = Callable[[Pair, Tensor], Sequence[Callable[[], Any]]]  # of sorted rows, and the rows of each expert
CALLS = 3  # of a graph


class Routed:
    """Random tokens of a mixture: x bfloat16 [n, d], chosen [n, k], weights [n, k]; counts: rows of each expert."""

    def __init__(self, size: Mixture, tokens: int) -> None:
        self.x = torch.randn(tokens, size.width, device="cuda", dtype=torch.bfloat16)
        self.chosen = torch.rand(tokens, size.experts, device="cuda").topk(size.chosen).indices
        self.weights = torch.rand(tokens, size.chosen, device="cuda")
        self.order = self.chosen.flatten().argsort(stable=True)
        self.counts = torch.bincount(self.chosen.flatten(), minlength=size.experts)
        inner = torch.randn(tokens * size.chosen, size.inner, device="cuda", dtype=torch.bfloat16)
        self.rows: Pair = (self.x[self.order // size.chosen], inner)


def run_experts(
    formats: Sequence[str], models: Sequence[str], tokens: Sequence[int], peers: bool, progress: Progress
) -> Iterator[ExpertsRun]:
    """Times every format, model and number of tokens, and the peers of each.

    Gives what is measured so far behind each model and format. Raises MachineError without a GPU.
    """
    need_gpu()
    cells, failed = [], dict[str, str]()
    for model in models:
        size = MIXTURES[model]
        routed = {count: Routed(size, count) for count in tokens}
        base = Floats(size)
        floats = {count: (_sum_of(base, one), _time(partial(base.layer, one))) for count, one in routed.items()}
        del base
        for fmt in formats:
            progress.step(f"{fmt}  {model}")
            others = _peers(fmt, size, routed, failed) if peers else {count: {} for count in tokens}
            ours = Ours(fmt, size)
            for count, one in routed.items():
                torch_time, layer = floats[count]
                cells.append(ours.cell(fmt, model, one, {BASE: torch_time, **others[count]}, layer))
            del ours
            yield ExpertsRun(environment(), tuple(cells), dict(failed))


class Floats:
    """The mixture in bfloat16 by torch's grouped GEMM."""

    def __init__(self, size: Mixture) -> None:
        shapes = ((size.width, 2 * size.inner), (size.inner, size.width))
        self.weights = [_floats(size.experts, channels, columns) for columns, channels in shapes]

    def __call__(self, rows: Pair, counts: Tensor) -> Sequence[Callable[[], Any]]:
        offsets = counts.cumsum(0).int()
        return [partial(self._product, x, w, offsets) for x, w in zip(rows, self.weights, strict=True)]

    def layer(self, one: Routed) -> Tensor:
        """Everything: sorting, gathering, both GEMMs, silu(gate) up, the weighted sum."""
        order = one.chosen.flatten().argsort(stable=True)
        bounds = torch.arange(1, self.weights[0].shape[0] + 1, device="cuda")
        offsets = torch.searchsorted(one.chosen.flatten()[order], bounds).int()
        both = self._product(one.x[order // one.chosen.shape[1]], self.weights[0], offsets)
        gate, up = both.chunk(2, dim=1)
        y = torch.empty(len(order), one.x.shape[1], device="cuda")
        y[order] = self._product(torch.nn.functional.silu(gate) * up, self.weights[1], offsets).float()
        return (y.view(*one.chosen.shape, -1) * one.weights[:, :, None]).sum(1).to(one.x.dtype)

    @staticmethod
    def _product(x: Tensor, w: Tensor, offsets: Tensor) -> Tensor:
        return torch._grouped_mm(x, w.transpose(1, 2), offs=offsets)


class Ours:
    """The mixture with packed weights."""

    def __init__(self, fmt: str, size: Mixture) -> None:
        self.size, self.library, scheme = size, KernelLibrary(), FORMATS[fmt]
        self.row = kernels_for(scheme).row
        shapes = ((size.width, 2 * size.inner, True), (size.inner, size.width, False))
        self.stacks = []
        for columns, channels, gated in shapes:
            kernels = kernels_for(scheme).of_experts()
            weight = torch.randn(size.experts * channels, columns, device="cuda")
            quantized = numerics.quantize_weight(weight, scheme.weights)
            self.stacks.append(PackedLinear.from_quantized(quantized, kernels.gated() if gated else kernels))

    def cell(self, fmt: str, model: str, one: Routed, others: dict[str, float], base_layer: float) -> ExpertsCell:
        prepared = launch.prepare(self.library, self.row, None, one.x)
        ordered, where = experts.sort_rows(
            self.library, self.stacks[0].kernels.gemm, prepared, one.chosen, self.size.experts
        )
        gate_up = partial(experts.multiply, self.library, self.stacks[0], self.size.experts, ordered, where)
        given = launch.prepare(self.library, self.row, None, gate_up(), where.live)
        down = partial(experts.multiply, self.library, self.stacks[1], self.size.experts, given, where)

        def both() -> None:
            launch.prepare(self.library, self.row, None, one.x)
            inner = launch.prepare(self.library, self.row, None, gate_up(), where.live)
            experts.multiply(self.library, self.stacks[1], self.size.experts, inner, where)

        used = int((one.counts > 0).sum())
        weight_bytes = sum(stack.stored_bits() for stack in self.stacks) * used // (8 * self.size.experts)
        apart = (_time(gate_up), _time(down))
        layer = _time(partial(self._layer, one))
        return ExpertsCell(fmt, model, one.x.shape[0], *apart, _time(both), layer, weight_bytes, others, base_layer)

    def _layer(self, one: Routed) -> Tensor:
        count = self.size.experts
        prepared = launch.prepare(self.library, self.row, None, one.x)
        ordered, where = experts.sort_rows(self.library, self.stacks[0].kernels.gemm, prepared, one.chosen, count)
        inner = experts.multiply(self.library, self.stacks[0], count, ordered, where)
        given = launch.prepare(self.library, self.row, None, inner, where.live)
        y = experts.multiply(self.library, self.stacks[1], count, given, where)
        return experts.sum_rows(self.library, y, where, one.weights)


class Humming:
    """humming's grouped layers, which quantize their input in every call."""

    def __init__(self, size: Mixture, bits: int, group: int, activations: int | None) -> None:
        from humming.layer import HummingLayer

        self.layers = []
        for columns, channels in ((size.width, 2 * size.inner), (size.inner, size.width)):
            inputs = {} if activations is None else {"input_config": {"dtype": f"int{activations}"}}
            scheme = {"dtype": f"int{bits}", "group_size": group}
            layer = HummingLayer(
                channels, columns, scheme, num_experts=size.experts, torch_dtype=torch.bfloat16, **inputs
            ).cuda()
            layer.load_from_unquantized(_floats(size.experts, channels, columns))
            layer.transform()
            self.layers.append(layer)

    def __call__(self, rows: Pair, counts: Tensor) -> Sequence[Callable[[], Any]]:
        layout = torch.nn.functional.pad(counts.cumsum(0), (1, 0))
        kind = {"gemm_type": "grouped_contiguous"}
        return [
            partial(layer, x, expert_layout=layout, compute_config=kind)
            for layer, x in zip(self.layers, rows, strict=True)
        ]


def _peers(fmt: str, size: Mixture, routed: dict[int, Routed], failed: dict[str, str]) -> dict[int, dict[str, float]]:
    """Both GEMMs of each peer of a format, by numbers of tokens."""
    found: dict[int, dict[str, float]] = {count: {} for count in routed}
    for name, make in _peers_of(fmt).items():
        try:
            peer = make(size)
            for count, one in routed.items():
                found[count][name] = _sum_of(peer, one)
        except Exception as error:  # a peer's failure is a line of the page, not ours
            failed[name] = f"{type(error).__name__}: {error}"[:200]
    return found


def _peers_of(fmt: str) -> dict[str, Callable[[Mixture], Linears]]:
    if not find_spec("humming") or fmt == "w8a8_fp8":
        return {}
    weights, activations = FORMATS[fmt].weights, None if FORMATS[fmt].activations is None else 8
    bits, group = weights.number.bits, weights.granularity.size
    return {f"humming W{bits}A{activations or 16}": lambda size: Humming(size, bits, group, activations)}


def _sum_of(peer: Linears, one: Routed) -> float:
    return sum(_time(call) for call in peer(one.rows, one.counts))


def _time(call: Callable[[], Any]) -> float:
    return graph_time([call] * CALLS)


def _floats(*shape: int) -> Tensor:
    return torch.randn(shape, device="cuda", dtype=torch.bfloat16) * 0.02
