"""Rows of X sorted by expert for a grouped GEMM, and the weighted sum of what a token's experts gave.

Pair (t, j) is token t and the j-th expert that it chose. The pairs of one expert follow one another in their order,
from the first row of a tile of BLOCK_M rows on; rows behind them up to the next tile are of no pair.
"""

from typing import NamedTuple

import triton
import triton.language as tl


class Mixture(NamedTuple):
    """How many experts there are and how many a token chooses, and the powers of two that hold them."""

    EXPERTS: tl.constexpr
    CHOSEN: tl.constexpr
    HELD_EXPERTS: tl.constexpr
    HELD_CHOSEN: tl.constexpr


class Pairs(NamedTuple):
    """Of tokens and experts, pointers.

    chosen: integers [n, CHOSEN]. rank, counts: of `rank_pairs`. place, int32 [n, CHOSEN]: the row of each pair. tiles,
    int32 [1 + 2 tiles]: how many tiles there are, and of each its expert and how many of its rows are of a pair; live:
    int32, how many rows these have.
    """

    chosen: tl.tensor
    rank: tl.tensor
    counts: tl.tensor
    place: tl.tensor
    tiles: tl.tensor
    live: tl.tensor


@triton.jit
def rank_pairs(chosen, rank, counts, PAIRS, SPAN: tl.constexpr):
    """Of the program's expert: rank [PAIRS], how many pairs before one chose it too; counts [experts], how many do."""
    expert = tl.program_id(0)
    pair = tl.arange(0, SPAN)
    found = tl.load(chosen + pair, mask=pair < PAIRS, other=-1)
    count = 0
    for _ in range(0, PAIRS, SPAN):
        own = found == expert
        following = pair + SPAN
        found = tl.load(chosen + following, mask=following < PAIRS, other=-1)  # on its way while these are ranked
        tl.store(rank + pair, count + tl.cumsum(own.to(tl.int32), 0) - 1, mask=own)
        count += tl.sum(own.to(tl.int32), 0)
        pair = following
    tl.store(counts + expert, count)


@triton.jit
def first_tiles(counts, expert, EXPERTS: tl.constexpr, HELD: tl.constexpr, BLOCK_M: tl.constexpr):
    """The first tile of each of `expert` [n], and the number of all tiles. HELD: the power of two from EXPERTS on."""
    every = tl.arange(0, HELD)
    tiles = tl.cdiv(tl.load(counts + every, mask=every < EXPERTS, other=0), BLOCK_M)
    before = every[None, :] < expert[:, None]
    return tl.sum(tl.where(before, tiles[None, :], 0), 1), tl.sum(tiles, 0)


@triton.jit
def place_pairs(token, pairs, sizes, BLOCK_M: tl.constexpr):
    """Rows [pairs of a token] where its pairs go, stored in `place`, and `tiles` and `live` of `pairs`."""
    slot = tl.arange(0, sizes.HELD_CHOSEN)
    real = slot < sizes.CHOSEN
    pair = token * sizes.CHOSEN + slot
    expert = tl.load(pairs.chosen + pair, mask=real, other=0).to(tl.int32)
    of_expert = tl.load(pairs.rank + pair, mask=real, other=0)
    first, count = first_tiles(pairs.counts, expert, sizes.EXPERTS, sizes.HELD_EXPERTS, BLOCK_M)
    row = first * BLOCK_M + of_expert
    tl.store(pairs.place + pair, row, mask=real)
    tile = pairs.tiles + 1 + 2 * (first + of_expert // BLOCK_M)
    starts = real & (of_expert % BLOCK_M == 0)
    left = tl.load(pairs.counts + expert) - of_expert
    tl.store(tile, expert, mask=starts)
    tl.store(tile + 1, tl.minimum(left, BLOCK_M), mask=starts)
    if token == 0:
        tl.store(pairs.tiles, count)
        tl.store(pairs.live, count * BLOCK_M)
    return row, real


@triton.jit
def copy_rows(x, out, token, row, real, WIDTH: tl.constexpr, SPAN: tl.constexpr):
    """Row `token` of x [n, WIDTH] to the rows of out [rows, WIDTH]; WIDTH counts elements, SPAN of them at once."""
    for start in range(0, WIDTH, SPAN):
        column = start + tl.arange(0, SPAN)
        values = tl.load(x + token.to(tl.int64) * WIDTH + column, mask=column < WIDTH)
        to = out + row[:, None].to(tl.int64) * WIDTH + column[None, :]
        mask = real[:, None] & (column < WIDTH)[None, :]
        tl.store(to, tl.broadcast_to(values[None, :], to.shape), mask=mask)


@triton.jit
def copy_scales(scale, out, token, row, real, GROUPS: tl.constexpr, TOKENS, ROWS):
    """Column `token` of scales [GROUPS, TOKENS] to the columns of out [GROUPS, ROWS]."""
    for group in range(GROUPS):
        value = tl.load(scale + group * TOKENS + token)
        tl.store(out + group * ROWS + row, tl.broadcast_to(value, row.shape), mask=real)


@triton.jit
def sum_pairs(y, place, weights, out, CHOSEN: tl.constexpr, WIDTH: tl.constexpr, SPAN: tl.constexpr):
    """out[t] = sum over j of weights[t, j] y[place[t, j]], in the order of j: float32 operations that are not fused."""
    token = tl.program_id(0)
    column = tl.program_id(1) * SPAN + tl.arange(0, SPAN)
    inside = column < WIDTH
    total = tl.full((SPAN,), 0.0, tl.float32)
    for slot in tl.static_range(CHOSEN):
        pair = token * CHOSEN + slot
        row = tl.load(place + pair).to(tl.int64)
        values = tl.load(y + row * WIDTH + column, mask=inside, other=0.0).to(tl.float32)
        total = total + values * tl.load(weights + pair)
    tl.store(out + token.to(tl.int64) * WIDTH + column, total.to(out.dtype.element_ty), mask=inside)
