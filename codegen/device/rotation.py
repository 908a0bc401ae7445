"""Block-diagonal rotations of rows on the float16 tensor cores, with float32 sums."""

import triton
import triton.language as tl

from .row_operands import RowTile, channels_of_places
from .row_statistics import abs_max


@triton.jit
def lift_of(peak):
    """The power of two that brings peak >= 0 to 2^11 .. 2^12, if it is a number: float16 then loses nothing."""
    exponent = peak.to(tl.int32, bitcast=True) >> 23
    return (tl.minimum(265 - exponent, 253) << 23).to(tl.float32, bitcast=True)


@triton.jit
def row_lifts(y):
    """`lift_of` each row's peak [ROWS].

    Of one row it goes through a scalar: for each layout that wants a vector Triton would compute it again from the
    row's start.
    """
    lift = lift_of(abs_max(y, 1))
    if lift.shape[0] == 1:
        lift = tl.full((1,), 1.0, tl.float32) * tl.sum(lift, axis=0)
    return lift


@triton.jit
def load_rotation(rotation, start, BLOCK: tl.constexpr, DEPTH: tl.constexpr, WIDTH: tl.constexpr):
    """Rows start .. start + DEPTH - 1 of a rotation [BLOCK, BLOCK] in WIDTH columns, zero beyond the block."""
    i = start + tl.arange(0, DEPTH)
    j = tl.arange(0, WIDTH)
    cells = rotation + i[:, None] * BLOCK + j[None, :]
    if BLOCK == WIDTH:
        return tl.load(cells)
    else:
        return tl.load(cells, mask=(i < BLOCK)[:, None] & (j < BLOCK)[None, :], other=0.0)


@triton.jit
def rotate(y, r, FINE: tl.constexpr):
    """y R of y [ROWS, n] in blocks of r's size. FINE: y is split into two float16, which hold 22 bits of it."""
    ROWS: tl.constexpr = y.shape[0]
    LENGTH: tl.constexpr = y.shape[1]
    blocks = tl.reshape(y, (ROWS * LENGTH // r.shape[0], r.shape[0]))
    high = blocks.to(tl.float16)
    rotated = tl.dot(high, r)
    if FINE:
        rotated = tl.dot((blocks - high.to(tl.float32)).to(tl.float16), r, rotated)
    return tl.reshape(rotated, (ROWS, LENGTH))


@triton.jit
def permute_and_rotate(y, tile, transform, sizes, FINE: tl.constexpr):
    """y[P] R1 [ROWS, ROTATED], and its `RowTile`: blocks of BLOCK1 channels in HELD1 places each.

    Of a large R1 only DEPTH1 rows at a time are in shared memory, with the channels that they multiply.
    """
    HELD: tl.constexpr = transform.HELD1
    rotated = tl.full((sizes.ROWS * sizes.ROTATED // HELD, HELD), 0.0, tl.float32)
    if transform.DEPTH1 == HELD:
        channel, real = channels_of_places(sizes.ROTATED, transform.BLOCK1, HELD, sizes.K)
        source = tl.load(transform.permutation + channel, mask=real, other=0).to(tl.int32)
        r1 = load_rotation(transform.rotation1, 0, transform.BLOCK1, HELD, HELD)
        rotated = add_rotated(rotated, y, source, real, r1, FINE)
    else:
        for part in tl.static_range((transform.BLOCK1 + transform.DEPTH1 - 1) // transform.DEPTH1):
            place = tl.arange(0, sizes.ROTATED // (HELD // transform.DEPTH1))
            of_block = part * transform.DEPTH1 + place % transform.DEPTH1
            channel = place // transform.DEPTH1 * transform.BLOCK1 + of_block
            real = (of_block < transform.BLOCK1) & (channel < sizes.K)
            source = tl.load(transform.permutation + channel, mask=real, other=0).to(tl.int32)
            start = part * transform.DEPTH1
            r1 = load_rotation(transform.rotation1, start, transform.BLOCK1, transform.DEPTH1, HELD)
            rotated = add_rotated(rotated, y, source, real, r1, FINE)
        channel, real = channels_of_places(sizes.ROTATED, transform.BLOCK1, HELD, sizes.K)
    return tl.reshape(rotated, (sizes.ROWS, sizes.ROTATED)), RowTile(
        tile.row, tile.inside, tile.start, channel, real, tile.M
    )


@triton.jit
def add_rotated(total, y, source, real, r, FINE: tl.constexpr):
    """total + the channels of y [ROWS, n] at places `source`, in blocks of r's rows, times r."""
    SHAPE: tl.constexpr = (total.shape[0], r.shape[0])
    high = y.to(tl.float16)
    total = tl.dot(tl.reshape(reorder(high, source, real), SHAPE), r, total)
    if FINE:
        rest = (y - high.to(tl.float32)).to(tl.float16)
        total = tl.dot(tl.reshape(reorder(rest, source, real), SHAPE), r, total)
    return total


@triton.jit
def regroup(y, tile, transform, sizes, form):
    """Rotated rows with the groups of `form` in GROUP_HELD places each, and their `RowTile`."""
    channel, real = channels_of_places(sizes.GROUPED, form.GROUP, form.GROUP_HELD, sizes.K)
    source = channel
    if transform.BLOCK1 != transform.HELD1:
        source = channel // transform.BLOCK1 * transform.HELD1 + channel % transform.BLOCK1
    y = reorder(y, tl.where(real, source, 0), real)
    return y, RowTile(tile.row, tile.inside, tile.start, channel, real, tile.M)


@triton.jit
def reorder(y, source, real):
    """y [ROWS, n] to [ROWS, m]: place j from place source[j], 0 where nothing is real.

    As one vector, which is gathered through shared memory: along an axis Triton shuffles within warps, in n m steps.
    """
    ROWS: tl.constexpr = y.shape[0]
    LENGTH: tl.constexpr = y.shape[1]
    SHAPE: tl.constexpr = (ROWS, source.shape[0])
    place = source[None, :] + LENGTH * tl.arange(0, ROWS)[:, None]
    flat = tl.gather(tl.reshape(y, (ROWS * LENGTH,)), tl.reshape(place, (ROWS * source.shape[0],)), axis=0)
    return tl.where(real[None, :], tl.reshape(flat, SHAPE), 0.0)
