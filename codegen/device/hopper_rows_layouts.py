"""Layouts of activation quantization on compute capability 9.0: MMA tiles whose columns come out in channel order.

A row of K channels is a column of blocks, the operand rows of a product with a rotation. The second rotation need be no
power of two wide: it is cut into spans of powers of two, the widest first, the last of them padded.
"""

import triton
from triton.experimental import gluon
from triton.experimental.gluon import language as gl

LEAST_WIDTH = 16  # columns of a product


@gluon.constexpr_function
def spans_of(size):
    """First column and width of the powers of two, 16 or more, that hold `size` columns: 128 and 32 hold 148."""
    spans, first = [], 0
    padded = triton.cdiv(size, LEAST_WIDTH) * LEAST_WIDTH
    while first < padded:
        width = 1 << (padded - first).bit_length() - 1
        spans.append((first, width))
        first += width
    return spans


@gluon.constexpr_function
def span_count(size):
    """How many spans hold a block of `size` channels."""
    return len(spans_of(size))


@gluon.constexpr_function
def span_first(size, span):
    """The first column of a span."""
    return spans_of(size)[span][0]


@gluon.constexpr_function
def span_width(size, span):
    """The columns of a span."""
    return spans_of(size)[span][1]


@gluon.constexpr_function
def is_padded(size):
    """Whether the spans hold more columns than a block has."""
    return sum(width for _, width in spans_of(size)) != size


@gluon.constexpr_function
def warps_across(rows, num_warps):
    """Warps that share the columns of a product's rows: those that would have no rows of their own."""
    return num_warps // min(rows // 16, num_warps)


@gluon.constexpr_function
def quad_columns(rows, columns, num_warps):
    """Columns of a product that four threads share: eight each, or as many as there are."""
    return min(32, columns // warps_across(rows, num_warps))


@gluon.constexpr_function
def mma_layout(rows, columns, num_warps):
    """The layout of a product [rows, columns] of the tensor cores."""
    across = warps_across(rows, num_warps)
    return gl.NVMMADistributedLayout([3, 0], [num_warps // across, across], [16, columns // across, 16])


@gluon.constexpr_function
def doublings(first, end):
    """first, 2 first, 4 first ... below `end`: bases of a linear layout."""
    return [first << bit for bit in range((end // first).bit_length() - 1)]


@gluon.constexpr_function
def channel_layout(rows, columns, num_warps):
    """The layout of a product after `in_channel_order`: the channels that a thread holds in a row come first."""
    across, quad = warps_across(rows, num_warps), quad_columns(rows, columns, num_warps)
    down = 16 * num_warps // across
    held = [[0, j] for j in doublings(1, quad // 4)] + [[8, 0]]
    held += [[0, j] for j in doublings(quad, columns // across)] + [[i, 0] for i in doublings(down, rows)]
    lanes = [[0, quad // 4], [0, quad // 2], [1, 0], [2, 0], [4, 0]]
    warps = [[i, 0] for i in doublings(16, down)] + [[0, j] for j in doublings(columns // across, columns)]
    return gl.DistributedLinearLayout(held, lanes, warps, [], [rows, columns])


@gluon.jit
def in_channel_order(y, WARPS: gl.constexpr):
    """A product's columns as the channels to which `store_rotation` gave them; no data moves."""
    ROWS: gl.constexpr = y.shape[0]
    COLUMNS: gl.constexpr = y.shape[1]
    QUAD: gl.constexpr = quad_columns(ROWS, COLUMNS, WARPS)
    layout: gl.constexpr = channel_layout(ROWS, COLUMNS, WARPS)
    y = y.reshape((ROWS, COLUMNS // QUAD, QUAD // 8, 4, 2)).permute((0, 1, 3, 2, 4))
    return gl.convert_layout(y.reshape((ROWS, COLUMNS)), layout, assert_trivial=True)


@gluon.constexpr_function
def broadcast_layout(count, num_warps):
    """The layout of a vector [count] of which every warp has all."""
    same = [[0]] * (num_warps.bit_length() - 1)
    lanes = [[1], [2], [4], [8], [16]]
    return gl.DistributedLinearLayout([[i] for i in doublings(32, count)], lanes, same, [], [count])


@gluon.constexpr_function
def vector_length(count):
    """The length of a vector that holds `count` values in every warp."""
    return max(32, triton.next_power_of_2(count))


@gluon.constexpr_function
def read_layout(num_warps):
    """The layout in which blocks of 128 16-bit floats are read: 16 bytes a thread, two blocks a warp."""
    return gl.BlockedLayout([1, 8], [2, 16], [num_warps, 1], [1, 0])
