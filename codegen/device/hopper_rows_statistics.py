"""Peaks and factors of blocks and rows on compute capability 9.0, by way of shared memory."""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from .hopper_rows_layouts import broadcast_layout, vector_length, warps_across
from .hopper_rows_shared import load_words, store_words
from .hopper_shared import partition_barrier


@gluon.jit
def abs_bits(y):
    """|y| by the order of the bits, in which a NaN is the largest."""
    return y.to(gl.int32, bitcast=True) & 0x7FFFFFFF


@gluon.jit
def block_lift(peak):
    """The power of two that brings a peak, given by its bits, to 2^11 .. 2^12."""
    return (gl.minimum(265 - (peak >> 23), 253) << 23).to(gl.float32, bitcast=True)


@gluon.jit
def block_drop(peak):
    """1 / `block_lift`."""
    return (gl.maximum((peak >> 23) - 11, 1) << 23).to(gl.float32, bitcast=True)


@gluon.jit
def row_words(byte, r: gl.constexpr, blocks, HEAD_WORDS: gl.constexpr, TAIL_WORDS: gl.constexpr, sizes):
    """The words of row r of X, 0 for slots that are not real, as a vector that every warp has.

    From address `byte` on lie HEAD_WORDS for each block of the head and TAIL_WORDS for each of the tail.
    """
    REAL: gl.constexpr = sizes.K // blocks.SIZE
    SPLIT: gl.constexpr = blocks.HEAD * HEAD_WORDS
    ALL: gl.constexpr = SPLIT + blocks.TAIL * TAIL_WORDS
    COUNT: gl.constexpr = vector_length(ALL if blocks.SLOTS >= blocks.HEAD else blocks.SLOTS * HEAD_WORDS)
    word = gl.arange(0, COUNT, broadcast_layout(COUNT, sizes.WARPS))
    inside = word // HEAD_WORDS < REAL
    if blocks.TAIL:
        inside = gl.where(word < SPLIT, inside, blocks.HEAD + (word - SPLIT) // TAIL_WORDS < REAL)
    return gl.where(inside, load_words(byte + (r * blocks.SLOTS * HEAD_WORDS + word) * 4), 0)


@gluon.jit
def value_of_row(row_values, i, SLOTS: gl.constexpr):
    """For each of the slots i the value of its row, from a tuple of numbers."""
    chosen = gl.full(i.shape, 0, row_values[0].dtype, i.type.layout) + row_values[0]
    for r in gl.static_range(1, len(row_values)):
        chosen = gl.where(i // SLOTS >= r, row_values[r], chosen)
    return chosen


@gluon.jit
def rms_factors(pieces, squares, eps, PIECE: gl.constexpr, sizes):
    """1 / sqrt(mean(x^2) + eps) of each row, a tuple; squares: address of a word for each slot."""
    for piece in gl.static_range(len(pieces)):
        x = pieces[piece][0].to(gl.float32)
        i = PIECE * piece + gl.arange(0, PIECE, gl.SliceLayout(1, x.type.layout))
        store_words(squares + i * 4, gl.sum(x * x, axis=1).to(gl.int32, bitcast=True))
    partition_barrier()
    factors = ()
    for r in gl.static_range(sizes.ROWS):
        square = row_words(squares, r, sizes.first, 1, 1, sizes)
        square = gl.sum(square.to(gl.float32, bitcast=True), axis=0)
        factors = factors + (gl.div_rn(1.0, gl.sqrt_rn(gl.div_rn(square, sizes.K * 1.0) + eps)),)
    return factors


@gluon.jit
def find_row_peaks(peaks, sizes):
    """The bits of the largest |x| of each row, a tuple; peaks: address of a word for each slot."""
    row_peaks = ()
    for r in gl.static_range(sizes.ROWS):
        row_peaks = row_peaks + (gl.max(row_words(peaks, r, sizes.first, 1, 1, sizes), axis=0),)
    return row_peaks


@gluon.jit
def lift_rows(y, peaks, row_peaks, FROM: gl.constexpr, sizes):
    """The sums y [n, 128] of slots from FROM on, from the lift of each block to that of its row."""
    i = FROM + gl.arange(0, y.shape[0], gl.SliceLayout(1, y.type.layout))
    lift = block_lift(value_of_row(row_peaks, i, sizes.first.SLOTS))
    return y * (lift * block_drop(load_words(peaks + i * 4)))[:, None]


@gluon.jit
def product_peaks(y, WARPS: gl.constexpr):
    """The largest |y| of a product's rows [n, warps across], by each warp; what is not finite showed in X."""
    ACROSS: gl.constexpr = warps_across(y.shape[0], WARPS)
    return gl.max(gl.abs(y.reshape((y.shape[0], ACROSS, y.shape[1] // ACROSS))), axis=2)


@gluon.jit
def store_product_peaks(sums, byte, tile: gl.constexpr, sizes):
    """Writes the peaks of a tile's rows over all spans of columns; byte: address of those of the head."""
    peaks = product_peaks(sums[0][tile], sizes.WARPS)
    layout: gl.constexpr = peaks.type.layout
    for span in gl.static_range(1, len(sums)):
        others = product_peaks(sums[span][tile], sizes.WARPS)
        peaks = gl.maximum(peaks, gl.convert_layout(others, layout))
    if tile == 1:
        byte += sizes.last.HEAD * warps_across(sizes.last.HEAD, sizes.WARPS) * 4
    slot = gl.arange(0, peaks.shape[0], gl.SliceLayout(1, layout))[:, None] * peaks.shape[1]
    slot += gl.arange(0, peaks.shape[1], gl.SliceLayout(0, layout))[None, :]
    store_words(byte + slot * 4, peaks.to(gl.int32, bitcast=True))
