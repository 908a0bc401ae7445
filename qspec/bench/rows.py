"""Times of the activation quantization kernels on a CUDA GPU, beside a copy of the same bytes: the least they can take.

Every call has inputs and results of its own, as every copy has: results in one place would stay in the second-level
cache, and no call would write to memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from qspec.bench.measure import cold_copies, graph_time, need_gpu
from qspec.bench.rows_data import RowCell, Rows, kernels_of
from qspec.catalog import ActivationKernel
from qspec.kernels import launch
from qspec.kernels.generate import KernelLibrary
from qspec.kernels.launch import PlacedTransform
from qspec.models.inputs import Gated, LayerInput, Normed
from qspec.progress import Progress
from qspec.report.environment import environment
from qspec.transforms import InputTransform


def run_rows(models: Sequence[str], tokens: Sequence[int], progress: Progress) -> Rows:
    """Times every activation quantization kernel of the models' widths. Raises MachineError without a GPU."""
    need_gpu()
    library, copies = KernelLibrary(), dict[int, float]()
    cells = []
    for model in models:
        for row, columns in kernels_of(model):
            for count in tokens:
                progress.step(f"{row.name}  {count} x {columns}")
                cells.append(_cell(library, row, count, columns, copies))
    return Rows(environment(), tuple(cells))


def _cell(
    library: KernelLibrary, row: ActivationKernel, tokens: int, columns: int, copies: dict[int, float]
) -> RowCell:
    inputs = 2 if row.activation else 1
    moved = tokens * (columns * (2 * inputs + 1) + 4)
    placed = _transform(row.rotations, columns)
    calls = [_call(library, row, placed, _given(row.source, tokens, columns)) for _ in range(cold_copies(moved))]
    if moved not in copies:
        copies[moved] = _copy_time(moved)
    time = graph_time(calls)
    return RowCell(row.source, row.rotations, row.bits, columns, tokens, moved, time, copies[moved])


def _call(
    library: KernelLibrary, row: ActivationKernel, placed: PlacedTransform | None, given: LayerInput
) -> Callable[[], object]:
    kept = []  # the memory that a graph's call writes

    def call() -> None:
        kept.append(launch.prepare(library, row, placed, given))

    return call


def _given(source: str, tokens: int, columns: int) -> LayerInput:
    def random() -> Tensor:
        return torch.randn(tokens, columns, device="cuda", dtype=torch.bfloat16)

    if source == "rmsnorm":
        return Normed(random(), torch.ones(columns, device="cuda", dtype=torch.bfloat16), 1e-5)
    return Gated(random(), random()) if source == "silu_mul" else random()


def _transform(rotations: tuple[int, ...], columns: int) -> PlacedTransform | None:
    if not rotations:
        return None
    made = tuple(torch.linalg.qr(torch.randn(size, size))[0].half() for size in rotations)
    order = torch.randperm(columns) if len(rotations) > 1 else None
    return PlacedTransform.of(InputTransform(made, order), torch.device("cuda"))


def _copy_time(moved: int) -> float:
    from qspec.bench.copying import copy  # needs Triton, as a GPU's torch has it

    def call(source: Tensor, target: Tensor) -> Callable[[], object]:
        return lambda: copy(source, target)

    pairs = [torch.empty(2, moved // 8, dtype=torch.int32, device="cuda") for _ in range(cold_copies(moved))]
    return graph_time([call(*pair) for pair in pairs])
