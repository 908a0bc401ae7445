"""The bfloat16 rows that compute capability 9.0 quantizes: read ahead in pieces, normed or gated, as operands."""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from .hopper_epilogue import approximate_activation
from .hopper_rows_layouts import read_layout
from .hopper_rows_operands import ProgramRows
from .hopper_rows_shared import store_operand, store_words
from .hopper_rows_statistics import abs_bits, block_lift, value_of_row


@gluon.jit
def load_piece(x, rows, stride, piece: gl.constexpr, PIECE: gl.constexpr, sizes):
    """Blocks [PIECE, 128] of X from slot PIECE * piece of `rows` on, 0 where a slot is not real."""
    layout: gl.constexpr = read_layout(sizes.WARPS)
    i = PIECE * piece + gl.arange(0, PIECE, gl.SliceLayout(1, layout))
    row = rows.first + i // sizes.first.SLOTS
    inside = ((i % sizes.first.SLOTS < sizes.K // 128) & (row < rows.M))[:, None]
    place = row.to(gl.int64) * stride + i % sizes.first.SLOTS * 128
    place = place[:, None] + gl.arange(0, 128, gl.SliceLayout(0, layout))[None, :]
    return gl.load(x + place, mask=inside, other=0.0)


@gluon.jit
def load_source(source, rows, piece: gl.constexpr, PIECE: gl.constexpr, sizes):
    """A piece of x, and one of up where there is one."""
    x = load_piece(source.x, rows, source.stride, piece, PIECE, sizes)
    if source.up is not None:
        return (x, load_piece(source.up, rows, source.stride, piece, PIECE, sizes))
    else:
        return (x,)


@gluon.jit
def load_sources(source, rows, plan, sizes):
    """The pieces that are read ahead."""
    pieces = ()
    for piece in gl.static_range(plan.AHEAD):
        pieces = pieces + (load_source(source, rows, piece, plan.PIECE, sizes),)
    return pieces


@gluon.jit
def load_gain_pieces(gain, PIECE: gl.constexpr, sizes):
    """The gains of an RMSNorm, in pieces as those of one row."""
    COUNT: gl.constexpr = (sizes.K // 128 + PIECE - 1) // PIECE if sizes.ROWS == 1 else sizes.first.SLOTS // PIECE
    pieces = ()
    for piece in gl.static_range(COUNT):
        pieces = pieces + (load_piece(gain, ProgramRows(0, 1), 0, piece, PIECE, sizes),)
    return pieces


@gluon.jit
def source_values(source, held, gains, factors, piece: gl.constexpr, PIECE: gl.constexpr, sizes):
    """Blocks float32 [PIECE, 128] of x, RMSNorm(x) or f(x) up, as `load_source` gave them."""
    y = held[0].to(gl.float32)
    if source.gain is not None:
        i = PIECE * piece + gl.arange(0, PIECE, gl.SliceLayout(1, y.type.layout))
        gain = gains[piece % len(gains)].to(gl.float32)
        y = as_bfloat16(as_bfloat16(y * value_of_row(factors, i, sizes.first.SLOTS)[:, None]) * gain)
    elif source.up is not None:
        y = as_bfloat16(as_bfloat16(approximate_activation(y, source.ACTIVATION)) * held[1].to(gl.float32))
    return y


@gluon.jit
def as_bfloat16(y):
    """float32 rounded to bfloat16."""
    return y.to(gl.bfloat16).to(gl.float32)


@gluon.jit
def store_source(y, operand, peaks, piece: gl.constexpr, PIECE: gl.constexpr, sizes):
    """Writes blocks y float32 [PIECE, 128], each lifted by a power of two of its own, into the first operand.

    operand, peaks: addresses; of each slot's |y| the largest is written, a word.
    """
    i = PIECE * piece + gl.arange(0, PIECE, gl.SliceLayout(1, y.type.layout))
    peak = gl.max(abs_bits(y), axis=1)
    store_words(peaks + i * 4, peak)
    y = y * block_lift(peak)[:, None]
    if PIECE * piece < sizes.first.HEAD:
        store_operand(y, operand, PIECE * piece, sizes.first.HEAD, sizes.WARPS)
    else:
        start = operand + sizes.first.HEAD * 256
        store_operand(y, start, PIECE * piece - sizes.first.HEAD, sizes.first.TAIL, sizes.WARPS)
