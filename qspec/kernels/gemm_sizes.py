"""How a GEMM's input channels are cut: into steps with scales of their own, and those into products."""

from __future__ import annotations

import math
from dataclasses import dataclass

from qspec.catalog import GemmKernel, planes, power_of_two

PIECE = 128  # channels of one product of 8-bit operands; half as many of 16-bit ones
# Tokens from which writing weights down and multiplying by cuBLAS is faster than the portable kernel, measured or by
# analogy: the more an element costs to unpack in every tile, the earlier.
WHOLE_CODES, ONE_PLANE, SEVERAL_PLANES = 512, 256, 128
# and than the kernel of 9.0, which decodes nibbles in registers in one step
HOPPER_NIBBLES, HOPPER_OTHERS = 4096, 2048
NEVER = 1 << 31  # of gated GEMMs, which cuBLAS gives a kernel more


# rows of X of a tile of a grouped GEMM, and up to which mean of an expert
ROW_TILES = ((8, 4), (16, 12), (32, 24), (64, 192))
MOST_ROWS = 128
FLOAT_MEAN = 48  # and up to which 64 rows where weights are decoded: each tile decodes its weights anew


def row_tile(mean: float, kernel: GemmKernel) -> int:
    """Rows of X of a tile where experts have so many on average: most of them one or two tiles, or a few."""
    floating = kernel.activation_bits == 16
    for rows, most in ROW_TILES:
        if mean <= (min(most, FLOAT_MEAN) if floating else most):
            return rows
    return MOST_ROWS if floating or kernel.weight_bits == 8 else ROW_TILES[-1][0]


@dataclass(frozen=True)
class GemmSizes:
    """Of a kernel's file.

    step: channels of one partial sum, 0 where neither operand is grouped. tile: channels of one product. span: channels
    that a program writes down for cuBLAS. nibbles: whether 4-bit weights come in whole pack blocks, whose two halves
    are two operands as they are; other packed weights are gathered channel by channel.
    """

    step: int
    tile: int
    span: int
    nibbles: bool

    @classmethod
    def of(cls, kernel: GemmKernel) -> GemmSizes:
        step = math.gcd(*(group for group in (kernel.weight_group, kernel.activation_group) if group is not None))
        return cls(
            step=step,
            tile=_product_tile(step, floating=kernel.activation_bits == 16),
            span=_product_tile(step, floating=False),
            nibbles=kernel.weight_bits == 4 and not kernel.pairs and step % PIECE == 0,
        )

    def multiplied(self) -> int:
        """Channels that a step is multiplied as, the last of them masked where products do not divide it."""
        return -(-self.step // self.tile) * self.tile


def cublas_from(kernel: GemmKernel) -> tuple[int, int]:
    """Tokens from which cuBLAS is faster than the portable kernel, and than that of 9.0."""
    cut, nibbles = planes(kernel.weight_bits), GemmSizes.of(kernel).nibbles
    portable = WHOLE_CODES if nibbles or not cut else ONE_PLANE if len(cut) == 1 else SEVERAL_PLANES
    if kernel.gated:
        return portable, NEVER
    return portable, HOPPER_NIBBLES if nibbles else HOPPER_OTHERS


def _product_tile(step: int, *, floating: bool) -> int:
    """Channels of one product: a power of two that divides the step, or where that is too small, covers it."""
    smallest, largest = (16, PIECE // 2) if floating else (32, PIECE)
    if step == 0:
        return largest
    divides = min(step & -step, largest)
    return divides if divides >= smallest else min(max(power_of_two(step), smallest), largest)
