"""Number formats, granularities and schemes, as frozen values. No torch: the front end reads these too."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal


@dataclass(frozen=True)
class NumberFormat:
    """A storage format for one number.

    name: as written in a recipe. bits: of storage a value. kind: "int" (two's complement, qmin < 0), "uint", "float".
    qmin, qmax: the smallest and largest code (for floats: the largest magnitude, with its sign).
    reach: max|x| / s of a symmetric slice: qmax, or half a step more (`qspec.numerics` says where and why).
    block: channels that share a scale of 8 bits, where the format itself says so; 0 leaves it to the recipe.
    unit_bits: of the scale of a whole row, in which those of its blocks are counted.
    """

    name: str
    kind: Literal["int", "uint", "float"]
    bits: int
    qmin: float
    qmax: float
    reach: float
    block: int = 0
    unit_bits: int = 0

    def __str__(self) -> str:
        return self.name

    @property
    def about(self) -> str:
        """Its bits and codes in one line."""
        if self.kind == "float":
            blocks = f", a scale of 8 bits for each {self.block}" if self.block else ""
            return f"{self.bits}-bit float, -{self.qmax:g} … {self.qmax:g}{blocks}"
        return f"{self.bits}-bit integer, codes {self.qmin:g} … {self.qmax:g}"


FINER = 5  # integers of at most so many bits reach half a step beyond qmax


BELOW = 1 - 2.0**-10  # what remains of that half step's end: more than rounding a scale to float16 takes away


def half_a_step_more(qmax: float) -> float:
    """qmax + 1/2, and so little less that both ends of a range round to qmax (`qspec.numerics`)."""
    return (qmax + 0.5) * BELOW


def _int(bits: int) -> NumberFormat:
    largest = 2 ** (bits - 1) - 1
    reach = half_a_step_more(largest) if bits <= FINER else largest
    return NumberFormat(f"int{bits}", "int", bits, -largest - 1, largest, reach)


def _uint(bits: int) -> NumberFormat:
    return NumberFormat(f"uint{bits}", "uint", bits, 0, 2**bits - 1, 2**bits - 1)


NUMBER_FORMATS: dict[str, NumberFormat] = {
    f.name: f
    for f in (
        *(_int(bits) for bits in range(2, 9)),
        *(_uint(bits) for bits in (3, 4)),
        NumberFormat(
            "fp8_e4m3", "float", 8, -448, 448, 448
        ),  # OCP OFP8: 4 bits of exponent, 3 of mantissa, no infinity
        NumberFormat("nvfp4", "float", 4, -6, 6, 6, block=16, unit_bits=32),  # e2m1, scales e4m3 times the row's unit
        NumberFormat("mxfp4", "float", 4, -6, 6, 7, block=32),  # OCP MX: e2m1, scales e8m0, powers of two
    )
}


@dataclass(frozen=True)
class Granularity:
    """Which values share one scale.

    kind "tensor": all. "channel": one output channel (a row of W [out, in]). "token": one row of X [tokens, in].
    "group": `size` consecutive input channels of one row. "block": rows x cols tiles of W.
    """

    kind: Literal["tensor", "channel", "token", "group", "block"]
    size: int = 0
    rows: int = 0

    def __str__(self) -> str:
        if self.kind == "group":
            return f"per group {self.size}"
        if self.kind == "block":
            return f"per block {self.rows}x{self.size}"
        return f"per {self.kind}"


@dataclass(frozen=True)
class Clip:
    """How the range is cut before rounding: "none", a fixed "ratio" of the largest magnitude, or searched by "mse"."""

    kind: Literal["none", "ratio", "mse"] = "none"
    ratio: float = 1.0

    def __str__(self) -> str:
        return f"clip {self.ratio:g}" if self.kind == "ratio" else f"clip {self.kind}"


@dataclass(frozen=True)
class TensorFormat:
    """How one operand is stored: number format, granularity, symmetric or not, and clip."""

    form: ClassVar[str] = "FORMAT per GRANULARITY symmetric clip CLIP"
    number: NumberFormat
    granularity: Granularity
    symmetric: bool = True
    clip: Clip = Clip()

    def __str__(self) -> str:
        text = f"{self.number} {self.granularity} {'symmetric' if self.symmetric else 'asymmetric'}"
        return text if self.clip.kind == "none" else f"{text} {self.clip}"

    def group(self, columns: int) -> int:
        """Number of consecutive input channels that share a scale, for a row of `columns` values."""
        return self.granularity.size if self.granularity.kind == "group" else columns

    def scale_bits(self) -> int:
        """Bits of one stored weight scale: 8 for blocks of a float format, float16 for groups, float32 otherwise."""
        if self.number.block:
            return 8
        return 16 if self.granularity.kind == "group" else 32

    def stored_bits(self, rows: int, columns: int) -> int:
        """True bits of a [rows, columns] weight: codes, scales and zero points.

        int4 group 128 is 4 + 16/128 = 4.125 bits a weight, and with a zero point of four bits 4.15625. The zero
        points of each group of channels end at a whole byte. mxfp4 is 4 + 8/32 = 4.25, nvfp4 4 + 8/16 + 32/columns.
        """
        if self.granularity.kind == "tensor":
            rows_of_scales, groups = 1, 1
        else:
            rows_of_scales, groups = rows, columns // self.group(columns)
        zeros = 0 if self.symmetric else groups * -(-rows_of_scales * zero_bits(self.number.bits) // 8) * 8
        scales = groups * rows_of_scales * self.scale_bits() + rows * self.number.unit_bits
        return rows * columns * self.number.bits + scales + zeros


def zero_bits(bits: int) -> int:
    """Bits of one stored zero point of codes of `bits` bits: two share a byte where they fit."""
    return 4 if bits <= 4 else 8


@dataclass(frozen=True)
class Scheme:
    """A named pair of operand formats; `activations` None means 16-bit activations (W4A16)."""

    name: str
    weights: TensorFormat
    activations: TensorFormat | None = None

    @property
    def label(self) -> str:
        """The field's shorthand: W4A4, W8A8, W4A16."""
        return f"W{self.weights.number.bits}A{self.activations.number.bits if self.activations else 16}"
