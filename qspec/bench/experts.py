"""Times of a mixture's grouped GEMMs on a CUDA GPU, and of whole layers, beside torch's in bfloat16 and packages'.

Experts are many, so that their weights come from memory in every call. Peers of the GEMMs get rows that are sorted
already.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

from torch import Tensor

from qspec.bench.data import FORMATS
from qspec.bench.experts_data import BASE, MIXTURES, ExpertsCell, ExpertsRun, Mixture
from qspec.bench.experts_peers import (
    Floats,
    Layer,
    Linears,
    Routed,
    Stacks,
    layer_peers_of,
    peers_of,
    random_stacks,
)
from qspec.bench.measure import graph_time, need_gpu
from qspec.catalog import kernels_for
from qspec.kernels import experts, launch
from qspec.kernels.generate import KernelLibrary
from qspec.kernels.packing import PackedLinear, in_turn
from qspec.progress import Progress
from qspec.report.environment import environment

CALLS = 3  # of a graph
Peer = TypeVar("Peer")


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
        floats = {count: (_sum_of(base, one), _time_of(base.layer, one)) for count, one in routed.items()}
        del base
        for fmt in formats:
            progress.step(f"{fmt}  {model}")
            stacks = random_stacks(fmt, size)
            others = _times(peers_of(fmt, size) if peers else {}, _sum_of, routed, failed)
            layers = _times(layer_peers_of(fmt, size, stacks) if peers else {}, _time_of, routed, failed)
            ours = Ours(fmt, size, stacks)
            for count, one in routed.items():
                gemms, layer = floats[count]
                cell = ours.cell(fmt, model, one)
                cells.append(
                    replace(cell, others={BASE: gemms, **others[count]}, layers={BASE: layer, **layers[count]})
                )
            del ours, stacks
            yield ExpertsRun(environment(), tuple(cells), dict(failed))


class Ours:
    """The mixture with packed weights."""

    def __init__(self, fmt: str, size: Mixture, stacks: Stacks) -> None:
        self.size, self.library, kernels = size, KernelLibrary(), kernels_for(FORMATS[fmt]).of_experts()
        self.row = kernels.row
        codes, scale = (
            in_turn(part.view(size.experts, -1, part.shape[1]), 1).view(part.shape)
            for part in (stacks[0].codes, stacks[0].scale)
        )
        gate_up = replace(stacks[0], codes=codes, scale=scale)
        self.stacks = (
            PackedLinear.from_quantized(gate_up, kernels.gated()),
            PackedLinear.from_quantized(stacks[1], kernels),
        )

    def cell(self, fmt: str, model: str, one: Routed) -> ExpertsCell:
        """What a layer of these tokens takes; without its peers."""
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
        layer = _time_of(self.layer, one)
        return ExpertsCell(fmt, model, one.x.shape[0], *apart, _time(both), layer, weight_bytes, {}, {})

    def layer(self, one: Routed) -> Tensor:
        """Everything: quantization, sorting, both GEMMs, the weighted sum."""
        count = self.size.experts
        prepared = launch.prepare(self.library, self.row, None, one.x)
        ordered, where = experts.sort_rows(self.library, self.stacks[0].kernels.gemm, prepared, one.chosen, count)
        inner = experts.multiply(self.library, self.stacks[0], count, ordered, where)
        given = launch.prepare(self.library, self.row, None, inner, where.live)
        y = experts.multiply(self.library, self.stacks[1], count, given, where)
        return experts.sum_rows(self.library, y, where, one.weights)


def _times(
    peers: Mapping[str, Callable[[], Peer]],
    time: Callable[[Peer, Routed], float],
    routed: Mapping[int, Routed],
    failed: dict[str, str],
) -> dict[int, dict[str, float]]:
    """Of each peer by numbers of tokens."""
    found: dict[int, dict[str, float]] = {count: {} for count in routed}
    for name, make in peers.items():
        try:
            peer = make()
            for count, one in routed.items():
                found[count][name] = time(peer, one)
        except Exception as error:  # a peer's failure is a line of the page, not ours
            failed[name] = f"{type(error).__name__}: {error}"[:200]
    return found


def _sum_of(peer: Linears, one: Routed) -> float:
    return sum(_time(call) for call in peer(one))


def _time_of(layer: Layer, one: Routed) -> float:
    return _time(partial(layer, one))


def _time(call: Callable[[], Any]) -> float:
    return graph_time([call] * CALLS)
