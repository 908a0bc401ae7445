"""What a benchmark measured: frozen values, the arithmetic on them, and their file."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

from qspec.errors import InputError
from qspec.files import read_input
from qspec.formats import NUMBER_FORMATS, Granularity, Scheme, TensorFormat

LLADA = ((12288, 4096), (4096, 4096), (24576, 4096), (4096, 12288))  # N x K: q/k/v, o, gate/up, down, merged
DREAM = ((4608, 3584), (3584, 3584), (37888, 3584), (3584, 18944))
BASE = "cuBLAS bf16"  # what ratios are over
# Peers whose times count the quantization of their input: a call takes bfloat16 and gives the GEMM. cuBLAS fp8 gets
# its operands in 8 bits.
WITH_INPUT = frozenset(("humming W4A8", "humming W8A8", "gemlite W8A8"))


FP8 = NUMBER_FORMATS["fp8_e4m3"]


def _format(bits: int, granularity: Granularity) -> TensorFormat:
    return TensorFormat(NUMBER_FORMATS[f"int{bits}"], granularity, True)


def _scheme(name: str, weights: int, activations: int | None, group: int | None = None) -> Scheme:
    granularity = Granularity("channel") if group is None else Granularity("group", group)
    x = None if activations is None else _format(activations, Granularity("token"))
    return Scheme(name, _format(weights, granularity), x)


FORMATS: Mapping[str, Scheme] = {
    "w4a16_g128": _scheme("w4a16_g128", 4, None, 128),
    "w3a16_g128": _scheme("w3a16_g128", 3, None, 128),
    "w4a4": _scheme("w4a4", 4, 4),
    "w4a8": _scheme("w4a8", 4, 8),
    "w8a8": _scheme("w8a8", 8, 8),
    "w8a8_fp8": Scheme("w8a8_fp8", TensorFormat(FP8, Granularity("channel")), TensorFormat(FP8, Granularity("token"))),
}


@dataclass(frozen=True)
class Cell:
    """One GEMM Y [M, N] = X W^T in one format.

    microseconds: of our kernel. whole: with the quantization of its input, the same where there is none.
    others: microseconds by name; `BASE` is among them. weight_bytes: codes, scales and zero points.
    """

    format: str
    channels: int
    columns: int
    tokens: int
    microseconds: float
    whole: float
    weight_bytes: int
    others: Mapping[str, float]

    @property
    def gigabytes_per_second(self) -> float:
        """`bytes_moved` by the time."""
        return self.bytes_moved / self.microseconds / 1e3

    @property
    def bytes_moved(self) -> int:
        """Bytes that no kernel can do without: weights, inputs (int8 codes, or bfloat16), bfloat16 outputs."""
        code = 2 if FORMATS[self.format].activations is None else 1
        return self.weight_bytes + self.tokens * (code * self.columns + 2 * self.channels)

    @property
    def tera_per_second(self) -> float:
        """10^12 operations a second, a multiplication and an addition counted as two."""
        return 2 * self.tokens * self.channels * self.columns / self.microseconds / 1e6

    def over(self, name: str) -> float:
        """How many times faster than another; above 1 we are ahead. Both with the input's quantization, or neither."""
        return self.others[name] / (self.whole if name in WITH_INPUT else self.microseconds)

    @property
    def best_peer(self) -> str | None:
        """Of the others but the base the one that we are least ahead of."""
        names = [name for name in self.others if name != BASE]
        return min(names, key=self.over) if names else None


@dataclass(frozen=True)
class Bench:
    """One run. copy: GB/s that a large copy reads and writes together. arithmetic: bfloat16 TFLOP/s of cuBLAS on
    8192 x 8192 x 8192. environment: versions and names. failed: peers that did not run, with their errors."""

    copy: float
    arithmetic: float
    environment: Mapping[str, str]
    cells: tuple[Cell, ...]
    failed: Mapping[str, str]

    def peak(self, fmt: str) -> float:
        """10^12 operations a second that a format's GEMMs can have: 8-bit operands take half the time."""
        return self.arithmetic * (1 if FORMATS[fmt].activations is None else 2)

    def limit(self, cell: Cell) -> float:
        """The share of the nearer limit that a cell reaches: of the copy's bandwidth, or of the arithmetic."""
        return max(cell.gigabytes_per_second / self.copy, cell.tera_per_second / self.peak(cell.format))

    def as_json(self) -> dict[str, object]:
        """Everything measured, with the figures that follow from it."""
        cells = [
            {
                **asdict(cell),
                "gigabytes_per_second": round(cell.gigabytes_per_second, 1),
                "tera_per_second": round(cell.tera_per_second, 1),
                "share_of_limit": round(self.limit(cell), 3),
            }
            for cell in self.cells
        ]
        return {**asdict(self), "cells": cells}


def read(paths: Sequence[Path]) -> Bench:
    """The runs of one GPU as one, from their bench.json. Raises InputError where a file is none."""
    runs = read_runs(paths, _bench, "bench.json", "qspec bench")
    failed = {name: why for run in runs for name, why in run.failed.items()}
    return replace(runs[0], cells=tuple(cell for run in runs for cell in run.cells), failed=failed)


def _bench(data: dict[str, Any]) -> Bench:
    cells = tuple(Cell(**own(Cell, cell)) for cell in data["cells"])
    return Bench(data["copy"], data["arithmetic"], data["environment"], cells, data["failed"])


class Run(Protocol):
    """What a benchmark's file holds: environment has versions and names."""

    @property
    def environment(self) -> Mapping[str, str]: ...


R = TypeVar("R", bound=Run)


def read_runs(paths: Sequence[Path], parse: Callable[[dict[str, Any]], R], name: str, writer: str) -> list[R]:
    """Runs of one GPU from their files, `name` as `writer` writes it.

    Raises InputError naming the file that is none, or of another GPU than the first.
    """
    runs: list[R] = []
    for path in paths:
        try:
            runs.append(parse(json.loads(read_input(path))))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"not a benchmark's {name}", where=str(path), hint=f"{writer} writes one") from error
        if runs[-1].environment["gpu"] != runs[0].environment["gpu"]:
            raise InputError("runs on different GPUs do not make one table", where=str(path))
    return runs


def own(kind: type[Any], data: dict[str, Any]) -> dict[str, Any]:
    """What the fields of a dataclass hold, of a file's object that has derived figures too."""
    return {field.name: data[field.name] for field in fields(kind)}


def ran_on(environment: Mapping[str, str]) -> str:
    """The first line of a run's tables: its GPU and versions."""
    return f"{environment['gpu']}, torch {environment['torch']}, triton {environment['triton']}"
