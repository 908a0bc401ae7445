"""What activation quantization kernels take: frozen values, their file and their table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from qspec.bench.data import own, ran_on, read_runs
from qspec.catalog import ActivationKernel

WIDTHS: Mapping[str, tuple[tuple[int, str], ...]] = {  # of LLaDA-8B and Dream-7B: K, and what it is computed of
    "llada": ((4096, "rmsnorm"), (12288, "silu_mul")),
    "dream": ((3584, "rmsnorm"), (18944, "silu_mul")),
}
BLOCK = 128  # of DuQuant's rotations, and of the first of a Hadamard transform's two
MADE = {"plain": "x", "rmsnorm": "RMSNorm", "silu_mul": "silu(gate) up"}


@dataclass(frozen=True)
class RowCell:
    """One activation quantization kernel on X [tokens, columns] in bfloat16.

    bytes_moved: what it must read and write. microseconds: its time. copy: that of moving as many bytes by a copy
    (`bench.copying`).
    """

    source: str
    rotations: tuple[int, ...]
    bits: int
    columns: int
    tokens: int
    bytes_moved: int
    microseconds: float
    copy: float

    @property
    def share(self) -> float:
        """Of the copy's bandwidth, 1 being as fast as the copy."""
        return self.copy / self.microseconds


@dataclass(frozen=True)
class Rows:
    """One run. environment: versions and names."""

    environment: Mapping[str, str]
    cells: tuple[RowCell, ...]

    def as_json(self) -> dict[str, object]:
        """Everything measured, and the shares."""
        return {**asdict(self), "cells": [{**asdict(cell), "share": round(cell.share, 3)} for cell in self.cells]}


def kernels_of(model: str) -> list[tuple[ActivationKernel, int]]:
    """The kernels of a model's widths, and K: unrotated, rotated once, as DuQuant and as QuaRot rotate."""
    return [
        (ActivationKernel(rotations, 4 if rotations else 8, None, True, 1.0, source=source), columns)
        for columns, made in WIDTHS[model]
        for source in ("plain", made)
        for rotations in ((), (BLOCK,), (BLOCK, BLOCK), (BLOCK, columns // BLOCK))
    ]


def read(paths: Sequence[Path]) -> Rows:
    """The runs of one GPU as one, from their rows.json. Raises InputError where a file is none."""
    runs = read_runs(paths, _rows, "rows.json", "qspec bench --rows")
    return replace(runs[0], cells=tuple(cell for run in runs for cell in run.cells))


def _rows(data: dict[str, Any]) -> Rows:
    cells = (RowCell(**own(RowCell, cell) | {"rotations": tuple(cell["rotations"])}) for cell in data["cells"])
    return Rows(data["environment"], tuple(cells))


def markdown(run: Rows) -> str:
    """One table: for each kernel and width microseconds, the copy's, the share and the bandwidth, by tokens."""
    counts = list(dict.fromkeys(cell.tokens for cell in run.cells))
    head = ["rows of", "rotations", "codes", "K", *(f"M {count}: us / copy" for count in counts), "of copy", "GB/s"]
    lines = [
        ran_on(run.environment),
        "Microseconds, medians of CUDA graphs over cold copies, beside a Triton kernel that copies as many bytes; "
        f"launches included; `of copy` and GB/s at M {counts[-1] if counts else 0}.",
        "",
        f"| {' | '.join(head)} |",
        f"|{'---|' * len(head)}",
    ]
    kinds = dict.fromkeys((cell.source, cell.rotations, cell.bits, cell.columns) for cell in run.cells)
    for kind in kinds:
        cells = {c.tokens: c for c in run.cells if (c.source, c.rotations, c.bits, c.columns) == kind}
        source, rotations, bits, columns = kind
        row = [MADE[source], " x ".join(map(str, rotations)), f"int{bits}", str(columns)]
        row += [f"{cells[n].microseconds:.1f} / {cells[n].copy:.1f}" if n in cells else "" for n in counts]
        last = cells.get(counts[-1])
        row += [f"{last.share:.0%}", f"{last.bytes_moved / last.microseconds / 1e3:.0f}"] if last else ["", ""]
        lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines) + "\n"
