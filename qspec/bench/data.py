"""What a benchmark measured: frozen values, and the arithmetic on them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from qspec.formats import NUMBER_FORMATS, Granularity, Scheme, TensorFormat

LLADA = ((12288, 4096), (4096, 4096), (24576, 4096), (4096, 12288))  # N x K: q/k/v, o, gate/up, down, merged
DREAM = ((4608, 3584), (3584, 3584), (37888, 3584), (3584, 18944))
BASE = "cuBLAS bf16"  # what ratios are over


def _format(bits: int, granularity: Granularity) -> TensorFormat:
    return TensorFormat(NUMBER_FORMATS[f"int{bits}"], granularity, True)


def _scheme(name: str, weights: int, activations: int | None, group: int | None = None) -> Scheme:
    granularity = Granularity("channel") if group is None else Granularity("group", group)
    x = None if activations is None else _format(activations, Granularity("token"))
    return Scheme(name, _format(weights, granularity), x)


FORMATS: Mapping[str, Scheme] = {
    "w4a16_g128": _scheme("w4a16_g128", 4, None, 128),
    "w4a4": _scheme("w4a4", 4, 4),
    "w4a8": _scheme("w4a8", 4, 8),
    "w8a8": _scheme("w8a8", 8, 8),
}


@dataclass(frozen=True)
class Cell:
    """One product Y [M, N] = X W^T in one format.

    microseconds: of our kernel. whole: with the row kernel that quantizes its input, the same where there is none.
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
        """Bytes that must move, weights, bfloat16 inputs (codes where they are quantized) and outputs, by the time."""
        code = 2 if FORMATS[self.format].activations is None else 1
        moved = self.weight_bytes + self.tokens * (code * self.columns + 2 * self.channels)
        return moved / self.microseconds / 1e3

    @property
    def tera_per_second(self) -> float:
        """10^12 operations a second, a multiplication and an addition counted as two."""
        return 2 * self.tokens * self.channels * self.columns / self.microseconds / 1e6

    def over(self, name: str) -> float:
        """How many times faster than another; above 1 we are ahead."""
        return self.others[name] / self.microseconds

    @property
    def best_peer(self) -> str | None:
        """The fastest of the others but the base."""
        names = [name for name in self.others if name != BASE]
        return min(names, key=lambda name: self.others[name]) if names else None


@dataclass(frozen=True)
class Bench:
    """One run. copy: GB/s that a large copy reads and writes together. arithmetic: bfloat16 TFLOP/s of cuBLAS on
    8192 x 8192 x 8192. environment: versions and names. failed: peers that did not run, with their errors."""

    copy: float
    arithmetic: float
    environment: Mapping[str, str]
    cells: tuple[Cell, ...]
    failed: Mapping[str, str]

    def limit(self, cell: Cell) -> float:
        """The share of the nearer limit that a cell reaches: of the copy's bandwidth, or of the arithmetic, which is
        twice as fast on 8-bit operands."""
        eight_bits = FORMATS[cell.format].activations is not None
        arithmetic = cell.tera_per_second / (self.arithmetic * (2 if eight_bits else 1))
        return max(cell.gigabytes_per_second / self.copy, arithmetic)
