"""Between two rotations on compute capability 9.0: each channel goes straight to its place in the second operand.

Places are looked up once: first, in the order of the permutation, each channel writes down at which byte it ends; then
the threads that get the sums of the first product read these bytes, and keep them.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from .hopper_rows_layouts import in_channel_order, mma_layout, span_count, span_first, span_width
from .hopper_rows_operands import permuted_start, tile_rows
from .hopper_rows_shared import (
    load_words,
    store_half_below,
    store_two_halves,
    store_two_halves_and_rests,
    swizzled,
)


@gluon.constexpr_function
def line_bytes(width):
    """Bytes of a row of an operand that lie together in shared memory: up to 128."""
    return min(128, 2 * width)


@gluon.constexpr_function
def doubled(half):
    """A word int32 of two equal halves."""
    return half * 65537 - (1 << 32) * (half >> 15)


@gluon.jit
def permuted_byte(row, column, span: gl.constexpr, blocks):
    """At which byte of the second operand the column of a block lies, if it is of a span; blocks: `RowBlocks`."""
    WIDTH: gl.constexpr = span_width(blocks.SIZE, span)
    FIRST: gl.constexpr = span_first(blocks.SIZE, span)
    LINE: gl.constexpr = line_bytes(WIDTH)
    START: gl.constexpr = permuted_start(blocks.SIZE, blocks.HEAD + blocks.TAIL, span)
    of_tile = row % blocks.HEAD
    byte = swizzled(of_tile * LINE + (column - FIRST) % (LINE // 2) * 2, LINE)
    byte += START * 1024 + row // blocks.HEAD * (blocks.HEAD * (2 * WIDTH))
    if WIDTH > 64:
        byte += (column - FIRST) // 64 * gl.where(row < blocks.HEAD, blocks.HEAD * 128, blocks.TAIL * 128)
    return byte


@gluon.jit
def store_places(permutation, base, sizes):
    """Writes from address `base` on for each channel, 16 bits, at which byte it lies in the second operand."""
    CHUNK: gl.constexpr = 4096 if sizes.K <= 4096 else 8192
    for start in gl.static_range(0, sizes.K, CHUNK):
        goal = start + gl.arange(0, CHUNK, gl.BlockedLayout([8], [32], [sizes.WARPS], [0]))
        source = gl.load(permutation + goal, mask=goal < sizes.K, other=0).to(gl.int32)
        row, column = goal // sizes.last.SIZE, goal % sizes.last.SIZE
        byte = permuted_byte(row, column, 0, sizes.last)
        for span in gl.static_range(1, span_count(sizes.last.SIZE)):
            other = permuted_byte(row, column, span, sizes.last)
            byte = gl.where(column < span_first(sizes.last.SIZE, span), byte, other)
        store_half_below(base + source * 2, byte, goal, sizes.K)


@gluon.jit
def load_places(base, tile: gl.constexpr, BEYOND: gl.constexpr, sizes):
    """For every two channels of a tile of the first product the bytes to which they go, as two halves of a word.

    BEYOND: where channels go that are beyond a row.
    """
    ROWS: gl.constexpr = tile_rows(sizes.first.HEAD, sizes.first.TAIL, tile)
    REAL: gl.constexpr = sizes.K // 128
    STEP: gl.constexpr = sizes.last.SLOTS * line_bytes(span_width(sizes.last.SIZE, 0))  # from one row of X to the next
    product = gl.zeros((ROWS, 128), gl.float32, mma_layout(ROWS, 128, sizes.WARPS))
    even, _ = gl.split(in_channel_order(product, sizes.WARPS).reshape((ROWS, 64, 2)))
    layout: gl.constexpr = even.type.layout
    i = tile * sizes.first.HEAD + gl.arange(0, ROWS, gl.SliceLayout(1, layout))
    pair = gl.arange(0, 64, gl.SliceLayout(0, layout))
    block = gl.where(i % sizes.first.SLOTS < REAL, i % sizes.first.SLOTS, 0)
    places = load_words(base + (block * 256)[:, None] + (pair * 4)[None, :])
    places = places + (i // sizes.first.SLOTS * doubled(STEP))[:, None]
    return gl.where((i % sizes.first.SLOTS < REAL)[:, None], places, doubled(BEYOND))


@gluon.jit
def store_permuted(y, places, base, REST: gl.constexpr, FINE: gl.constexpr):
    """Writes y [n, 128] as float16 to its places; if FINE, what that leaves of it REST bytes further."""
    even, odd = gl.split(y.reshape((y.shape[0], 64, 2)))
    if FINE:
        store_two_halves_and_rests(even, odd, places, base, REST)
    else:
        store_two_halves(even, odd, places, base)
