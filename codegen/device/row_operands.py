"""What an activation quantization kernel reads and writes, as groups of arguments."""

from typing import NamedTuple

import triton
import triton.language as tl


class RowSource(NamedTuple):
    """Of what the rows Y [M, K] are made, pointers.

    x: [M, K], rows `stride` apart. gain: [K], and eps: for the RMSNorm of x; up: [M, K], laid out as x, for
    f(x) up, f being ACTIVATION (`activate`). At most one of gain and up is there, the other None.
    """

    x: tl.tensor
    stride: tl.tensor
    gain: tl.tensor
    eps: tl.tensor
    up: tl.tensor
    ACTIVATION: tl.constexpr


class RowTransform(NamedTuple):
    """What rows are multiplied by before they are rounded: nothing, R0, or R0, then a permutation P and R1.

    rotation0, rotation1: pointers float16 [BLOCK0, BLOCK0] and [BLOCK1, BLOCK1], the blocks of a block-diagonal matrix,
    None where there is none. permutation: pointer int16 [K], where each channel comes from. HELD1: places of a block of
    the last rotation, a power of two. DEPTH1: rows of R1 that are in shared memory at once. FINE: whether rows keep 22
    bits between R0 and R1, not 11.
    """

    rotation0: tl.tensor
    rotation1: tl.tensor
    permutation: tl.tensor
    BLOCK0: tl.constexpr
    BLOCK1: tl.constexpr
    HELD1: tl.constexpr
    DEPTH1: tl.constexpr
    FINE: tl.constexpr


class RowResults(NamedTuple):
    """What is written, pointers, None where a format has none.

    codes: [M, K], or [M, K/2] of pairs; or floats [M, K]. scale, zero: [groups, M]. unit: float32 [M], of nvfp4's
    scales.
    """

    codes: tl.tensor
    scale: tl.tensor
    zero: tl.tensor
    unit: tl.tensor


class CodeFormat(NamedTuple):
    """The codes: NUMBER is "int" or a float format, or "float" of rows that are not quantized.

    SYMMETRIC: whether they have no zero points. QMIN, QMAX: the range of codes, floats. REACH: max|y| / s. CLIP: a
    factor on the range of y. GROUP: channels that share a scale, 0 for the whole row; each group is held in GROUP_HELD
    places, a power of two.
    """

    NUMBER: tl.constexpr
    SYMMETRIC: tl.constexpr
    QMIN: tl.constexpr
    QMAX: tl.constexpr
    REACH: tl.constexpr
    CLIP: tl.constexpr
    GROUP: tl.constexpr
    GROUP_HELD: tl.constexpr


class RowSizes(NamedTuple):
    """ROWS of K channels that a program takes.

    They are read into LENGTH places, in units of READ channels that are held in READ_HELD each; R1 leaves them in
    ROTATED places, and they are quantized in GROUPED. REGROUP: whether these two differ.
    """

    K: tl.constexpr
    ROWS: tl.constexpr
    LENGTH: tl.constexpr
    READ: tl.constexpr
    READ_HELD: tl.constexpr
    ROTATED: tl.constexpr
    GROUPED: tl.constexpr
    REGROUP: tl.constexpr


class RowTile(NamedTuple):
    """A program's rows [ROWS] of M and the channels [places] in its places; inside, real: which of them exist.

    start: offsets int64 [ROWS, 1] of the rows of a whole array [M, K].
    """

    row: tl.tensor
    inside: tl.tensor
    start: tl.tensor
    channel: tl.tensor
    real: tl.tensor
    M: tl.tensor


@triton.jit
def channels_of_places(LENGTH: tl.constexpr, SIZE: tl.constexpr, HELD: tl.constexpr, K: tl.constexpr):
    """The channels of LENGTH places that hold units of SIZE channels in HELD places each, and which of them exist."""
    place = tl.arange(0, LENGTH)
    if SIZE == HELD:
        return place, place < K
    else:
        return place // HELD * SIZE + place % HELD, (place % HELD < SIZE) & (place // HELD < K // SIZE)


@triton.jit
def real_cells(tile):
    """Which places [ROWS, places] exist."""
    return tile.inside[:, None] & tile.real[None, :]
