"""What an activation quantization kernel of compute capability 9.0 takes, and where it keeps it in shared memory."""

from typing import NamedTuple

import triton.language as tl
from triton.experimental import gluon

from .hopper_rows_layouts import spans_of


class RowBlocks(NamedTuple):
    """Rows as operands of products: blocks of SIZE channels, SLOTS of them for a row, real or not.

    The slots of a program's rows follow one another in two tiles of HEAD and TAIL blocks, TAIL possibly 0.
    """

    SIZE: tl.constexpr
    SLOTS: tl.constexpr
    HEAD: tl.constexpr
    TAIL: tl.constexpr


class HopperRowSizes(NamedTuple):
    """ROWS of K channels that a program of WARPS warps has at a time.

    first, last: `RowBlocks` of the first rotation and of the last. READ: pieces of rows that are read ahead, NEXT:
    whether those of the next rows are too.
    """

    K: tl.constexpr
    ROWS: tl.constexpr
    first: tl.tensor
    last: tl.tensor
    READ: tl.constexpr
    NEXT: tl.constexpr
    WARPS: tl.constexpr


class HopperRowPlan(NamedTuple):
    """How a program proceeds, and where things start in shared memory, in kilobytes.

    Rows are read in PIECES pieces of PIECE blocks, AHEAD of them ahead. OPERAND: the first operand, blocks of X. The
    second is at the start; REST: what float16 leaves of it, if FINE. R0: the first rotation, then the second. PEAKS: of
    blocks of X, squares of RMSNorms, peaks of rotated blocks.
    """

    PIECE: tl.constexpr
    PIECES: tl.constexpr
    AHEAD: tl.constexpr
    OPERAND: tl.constexpr
    REST: tl.constexpr
    R0: tl.constexpr
    PEAKS: tl.constexpr
    FINE: tl.constexpr


class ProgramRows(NamedTuple):
    """The rows that a program has at a time: from `first` on, of M."""

    first: tl.tensor
    M: tl.tensor


@gluon.constexpr_function
def tile_rows(head, tail, tile):
    """Blocks of tile 0, the head, or 1, the tail."""
    return tail if tile else head


@gluon.constexpr_function
def permuted_start(size, blocks, span):
    """The kilobyte where the operand of a span of the second product starts, of so many blocks of `size` channels.

    span may be the number of spans: their end.
    """
    return sum(blocks * width // 512 for _, width in spans_of(size)[:span])


@gluon.constexpr_function
def rest_start(permuted, last, size):
    """The kilobyte behind the second operand, of `last` blocks of `size` channels, and one for what is beyond a row."""
    return permuted_start(size, last, len(spans_of(size))) + 1 if permuted else 0


@gluon.constexpr_function
def operand_start(permuted, first, last, size, fine):
    """The kilobyte where the first operand starts, `first` blocks of 128 channels.

    That is where the second one is written later, if that is longer and has no padding to be kept; else behind it.
    """
    end = rest_start(permuted, last, size)
    shared = first // 4 < end and sum(width for _, width in spans_of(size)) == size
    return 0 if shared else end * (2 if fine else 1)


@gluon.constexpr_function
def rotation0_start(permuted, first, last, size, fine):
    """The kilobyte where the first rotation starts, behind both operands."""
    start = operand_start(permuted, first, last, size, fine)
    return start + first // 4 if start or not permuted else rest_start(permuted, last, size) * (2 if fine else 1)


@gluon.constexpr_function
def rotation1_start(rotation0, size, row, column):
    """The kilobyte where a cell of the second rotation starts: rows of one span, columns of another.

    row may be the number of spans: their end.
    """
    widths = [width for _, width in spans_of(size)]
    cells = [(k, n) for k in range(len(widths)) for n in range(len(widths)) if (k, n) < (row, column)]
    return rotation0 + 32 + sum(max(widths[k] * widths[n] // 512, 1) for k, n in cells)


@gluon.constexpr_function
def tile_start(size, head, tail, span, tile):
    """The kilobyte where a tile of a span of the second operand starts."""
    start = permuted_start(size, head + tail, span)
    return start + head * spans_of(size)[span][1] // 512 if tile else start
