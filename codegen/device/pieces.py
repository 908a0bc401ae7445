"""The loop over K: pieces of codes and activations, each multiplied by a function that the kernel brings.

`MULTIPLY(sums, codes, values, zero, g)` adds a product to the sums: codes int8 [n, k], values [k, m] of X;
g: `Gemm`.
"""

import triton
import triton.language as tl

from .unpack import high_nibbles, interleaved_channel, load_codes, low_nibbles

NIBBLE_BYTES = tl.constexpr(64)  # bytes of a piece of nibbles, whose halves are two operands of 64 channels


@triton.jit
def nibble_piece(sums, MULTIPLY: tl.constexpr, byte, zero, g, tile, MASKED: tl.constexpr):
    """Bytes [64] of W, whose low nibbles are half a pack block and whose high nibbles the other half."""
    HALF: tl.constexpr = g.w.PACK // 2
    if g.w.INTERLEAVED:
        channel = byte // HALF * g.w.PACK + interleaved_channel(byte % HALF)  # of the low nibble; high: + HALF
    else:
        channel = byte // HALF * g.w.PACK + byte % HALF
    w_inside, x_inside = inside_of(tile, byte < g.blocks.K // 2, MASKED)
    packed = tl.load(tile.w_rows + byte[None, :], mask=w_inside, other=0)
    low = tl.load(tile.x_rows + channel[:, None], mask=x_inside, other=0)
    high = tl.load(tile.x_rows + channel[:, None] + HALF, mask=x_inside, other=0)
    sums = MULTIPLY(sums, low_nibbles(packed), low, zero, g)
    return MULTIPLY(sums, high_nibbles(packed), high, zero, g)


@triton.jit
def code_piece(sums, MULTIPLY: tl.constexpr, channel, k_inside, zero, g, tile, MASKED: tl.constexpr):
    """Channels [k], one operand; with MASKED, those that are inside."""
    w_inside, x_inside = inside_of(tile, k_inside, MASKED)
    codes = load_codes(tile.w_rows, channel, w_inside, g.blocks.K, g.w)
    values = tl.load(tile.x_rows + channel[:, None], mask=x_inside, other=0)
    return MULTIPLY(sums, codes, values, zero, g)


@triton.jit
def inside_of(tile, k_inside, MASKED: tl.constexpr):
    """Masks of a piece of W [n, k] and of X [k, m]."""
    if MASKED:
        return tile.n_inside[:, None] & k_inside[None, :], k_inside[:, None] & tile.m_inside[None, :]
    else:
        return tile.n_inside[:, None], tile.m_inside[None, :]


@triton.jit
def sum_row(sums, MULTIPLY: tl.constexpr, zero, g, tile):
    """The products of all K channels."""
    if g.w.NUMBER == "int" and g.w.BITS == 4:
        for start in range(0, g.blocks.K // 2, NIBBLE_BYTES):
            byte = start + tl.arange(0, NIBBLE_BYTES)
            sums = nibble_piece(sums, MULTIPLY, byte, zero, g, tile, True)
    else:
        for start in range(0, g.blocks.K, g.blocks.PIECE):
            channel = start + tl.arange(0, g.blocks.PIECE)
            sums = code_piece(sums, MULTIPLY, channel, channel < g.blocks.K, zero, g, tile, True)
    return sums


@triton.jit
def sum_step(sums, MULTIPLY: tl.constexpr, step, zero, g, tile):
    """The products of the channels of one step. Few pieces are unrolled, and so loaded ahead all at once."""
    NIBBLES: tl.constexpr = g.w.NUMBER == "int" and g.w.BITS == 4 and g.blocks.STEP % (2 * NIBBLE_BYTES) == 0
    PIECE: tl.constexpr = 2 * NIBBLE_BYTES if NIBBLES else g.blocks.PIECE
    COUNT: tl.constexpr = (g.blocks.STEP + PIECE - 1) // PIECE
    UNROLLED: tl.constexpr = 2 if g.blocks.STEP % PIECE == 0 else 1
    if COUNT <= UNROLLED:
        for part in tl.static_range(COUNT):
            sums = step_piece(sums, MULTIPLY, step, part, zero, g, tile)
    else:
        for part in range(COUNT):
            sums = step_piece(sums, MULTIPLY, step, part, zero, g, tile)
    return sums


@triton.jit
def step_piece(sums, MULTIPLY: tl.constexpr, step, part, zero, g, tile):
    """One piece of a step; the last is masked where pieces do not divide it."""
    if g.w.NUMBER == "int" and g.w.BITS == 4 and g.blocks.STEP % (2 * NIBBLE_BYTES) == 0:
        byte = step * (g.blocks.STEP // 2) + part * NIBBLE_BYTES + tl.arange(0, NIBBLE_BYTES)
        return nibble_piece(sums, MULTIPLY, byte, zero, g, tile, False)
    elif g.blocks.STEP % g.blocks.PIECE == 0:
        channel = step * g.blocks.STEP + part * g.blocks.PIECE + tl.arange(0, g.blocks.PIECE)
        return code_piece(sums, MULTIPLY, channel, None, zero, g, tile, False)
    else:
        of_step = part * g.blocks.PIECE + tl.arange(0, g.blocks.PIECE)
        channel = step * g.blocks.STEP + of_step
        return code_piece(sums, MULTIPLY, channel, of_step < g.blocks.STEP, zero, g, tile, True)
