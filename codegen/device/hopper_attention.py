"""Attention of few queries on compute capability 9.0: keys and values by TMA, keys as rows of the products."""

from typing import NamedTuple

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from .attention import LOWEST_SCORE, Softmax
from .hopper_shared import (
    allocate_barriers,
    allocate_boxes,
    invalidate_barriers,
    partition_barrier,
    reinterpret,
    tma_load,
)


class HopperHeads(NamedTuple):
    """16-bit floats [batch, heads, tokens, WIDTH] in boxes of ROWS queries, of BLOCK keys and values.

    Descriptors, or `TokenBoxes`.
    """

    q: gl.tensor
    k: gl.tensor
    v: gl.tensor


class TokenBoxes(NamedTuple):
    """Tokens of a head on their way: a descriptor, buffers [STAGES, 1, 1, tokens, WIDTH], barriers [STAGES]."""

    data: gl.tensor
    buffers: gl.tensor
    full: gl.tensor


class Span(NamedTuple):
    """What of the keys and values a program takes: a sequence, a head, and the blocks first .. last - 1."""

    batch: gl.tensor
    head: gl.tensor
    first: gl.tensor
    last: gl.tensor


@gluon.constexpr_function
def product_layout(rows, num_warps):
    """Of products [.., rows], whose other rows are the warps'."""
    return gl.NVMMADistributedLayout([3, 0], [num_warps, 1], [16, rows, 16])


@gluon.jit
def allocate_token_boxes(desc, STAGES: gl.constexpr):
    """`TokenBoxes` of a descriptor, their barriers ready but for a fence."""
    full = allocate_barriers(STAGES)
    for slot in gl.static_range(STAGES):
        mbarrier.init(full.index(slot), count=1)
    return TokenBoxes(desc, allocate_boxes(desc, STAGES), full)


@gluon.jit
def ask_for_tokens(boxes, batch, head, block, slot, inside):
    """Has TMA bring a block of a head's tokens into `slot`, where `inside`; behind the last token come zeros."""
    BLOCK: gl.constexpr = boxes.data.block_shape[2]
    BYTES: gl.constexpr = BLOCK * boxes.data.block_shape[3] * 2
    full = boxes.full.index(slot)
    mbarrier.expect(full, BYTES, pred=inside)
    tma_load(boxes.data, [batch, head, block * BLOCK, 0], full, boxes.buffers.index(slot), pred=inside)


@gluon.jit
def rows_of_box(box, ROWS: gl.constexpr, WIDTH: gl.constexpr):
    """[ROWS, WIDTH] of a box [1, 1, ROWS, WIDTH]."""
    return reinterpret(box, [ROWS, WIDTH], gl.NVMMASharedLayout(128, 16))


@gluon.jit
def attend_few_queries_hopper(heads, mask, out, partials, sizes, STAGES: gl.constexpr, num_warps: gl.constexpr):
    """`attend_few_queries` with all products transposed: scores are [BLOCK, ROWS], sums [WIDTH, ROWS].

    As rows of a warpgroup's instruction 32 queries would fill half of it; keys and channels fill it. STAGES: blocks of
    keys and values that are on their way.
    """
    part = gl.program_id(0)
    pair = gl.program_id(1)
    batch = pair // sizes.HEADS
    head = pair % sizes.HEADS
    queries = allocate_token_boxes(heads.q, 1)
    keys = allocate_token_boxes(heads.k, STAGES)
    values = allocate_token_boxes(heads.v, STAGES)
    fence_async_shared()
    partition_barrier()
    blocks = (sizes.T + sizes.BLOCK - 1) // sizes.BLOCK
    own = Span(batch, head // sizes.SHARED, part * blocks // sizes.SPLIT, (part + 1) * blocks // sizes.SPLIT)
    gdc_launch_dependents()
    gdc_wait()
    ask_for_tokens(queries, batch, head, 0, 0, True)
    for early in gl.static_range(STAGES):
        block = own.first + early
        ask_for_tokens(keys, batch, own.head, block, early, block < own.last)
        ask_for_tokens(values, batch, own.head, block, early, block < own.last)
    mbarrier.wait(queries.full.index(0), 0)
    softmax = attend_tokens(HopperHeads(queries, keys, values), mask, own, sizes, num_warps)
    invalidate_barriers(queries.full, 1)
    invalidate_barriers(keys.full, STAGES)
    invalidate_barriers(values.full, STAGES)
    if sizes.SPLIT > 1:
        softmax, is_last = merge_partials(softmax, partials, pair, part, sizes)
        if is_last:
            store_heads(softmax, out, batch, head, sizes, num_warps)
    else:
        store_heads(softmax, out, batch, head, sizes, num_warps)


@gluon.jit
def attend_tokens(boxes, mask, own, sizes, num_warps: gl.constexpr):
    """The softmax over the tokens of a `Span`, whose first blocks are on their way. boxes: `HopperHeads`."""
    ROWS: gl.constexpr = sizes.ROWS
    BLOCK: gl.constexpr = sizes.BLOCK
    WIDTH: gl.constexpr = sizes.WIDTH
    STAGES: gl.constexpr = boxes.k.full.shape[0]
    layout: gl.constexpr = product_layout(ROWS, num_warps)
    dtype: gl.constexpr = boxes.q.data.dtype
    stored: gl.constexpr = gl.NVMMASharedLayout.get_default_for([BLOCK, ROWS], dtype)
    weights = gl.allocate_shared_memory(dtype, [BLOCK, ROWS], stored)
    maximum = gl.full((ROWS,), LOWEST_SCORE, gl.float32, gl.SliceLayout(0, layout))
    denominator = gl.full((ROWS,), 0.0, gl.float32, gl.SliceLayout(0, layout))
    sums = gl.full((WIDTH, ROWS), 0.0, gl.float32, layout)
    columns = rows_of_box(boxes.q.buffers.index(0), ROWS, WIDTH).permute((1, 0))
    for block in range(own.first, own.last):
        slot = (block - own.first) % STAGES
        phase = (block - own.first) // STAGES & 1
        mbarrier.wait(boxes.k.full.index(slot), phase)
        scores = gl.full((BLOCK, ROWS), 0.0, gl.float32, layout)
        rows = rows_of_box(boxes.k.buffers.index(slot), BLOCK, WIDTH)
        scores = warpgroup_mma(rows, columns, scores, use_acc=False, is_async=True)
        scores = warpgroup_mma_wait(0, deps=[scores])
        token = block * BLOCK + gl.arange(0, BLOCK, gl.SliceLayout(1, layout))
        real = token < sizes.T
        if mask is not None:
            real = gl.load(mask + own.batch.to(gl.int64) * sizes.T + token, mask=real, other=0) != 0
        scores = gl.where(real[:, None], scores * sizes.factor, float("-inf"))
        before = maximum
        maximum = gl.maximum(before, gl.max(scores, axis=0))
        shrink = gl.exp2(before - maximum)
        p = gl.exp2(scores - maximum[None, :])
        weights.store(p.to(dtype))  # the block before is multiplied: all warps have met for the maximum
        fence_async_shared()
        partition_barrier()
        following = block - 1 + STAGES  # into the place of the block before
        free = (following - own.first) % STAGES
        inside = (block > own.first) & (following < own.last)
        ask_for_tokens(boxes.k, own.batch, own.head, following, free, inside)
        ask_for_tokens(boxes.v, own.batch, own.head, following, free, inside)
        mbarrier.wait(boxes.v.full.index(slot), phase)
        channels = rows_of_box(boxes.v.buffers.index(slot), BLOCK, WIDTH).permute((1, 0))
        sums = warpgroup_mma(channels, weights, sums * shrink[None, :], is_async=True)
        denominator = denominator * shrink + gl.sum(p, axis=0)
        sums = warpgroup_mma_wait(0, deps=[sums])
    # Triton takes the barriers of the sum for the end of the products' reads, and has the next scratch in their place.
    partition_barrier()
    return Softmax(sums, denominator, maximum)


@gluon.jit
def merge_partials(softmax, partials, pair, part, sizes):
    """The softmax over all tokens of a head, merged by the last of its programs; whether this one is it."""
    layout: gl.constexpr = softmax.sums.type.layout
    row = gl.arange(0, sizes.ROWS, gl.SliceLayout(0, layout))
    channel = gl.arange(0, sizes.WIDTH, gl.SliceLayout(1, layout))
    # tiles of 8 x 8, of which a thread of a warp has two: what a warp stores at once lies together
    column = row // 8 * 64 + row % 8
    place = (channel // 8 * (8 * sizes.ROWS) + channel % 8 * 8)[:, None] + column[None, :]
    start = pair * sizes.SPLIT
    gl.store(partials.sums + (start + part) * (sizes.WIDTH * sizes.ROWS) + place, softmax.sums)
    gl.store(partials.maxima + (start + part) * sizes.ROWS + row, softmax.maximum)
    gl.store(partials.denominators + (start + part) * sizes.ROWS + row, softmax.denominator)
    partition_barrier()
    is_last = gl.atomic_add(partials.arrived + pair, 1, sem="acq_rel") == sizes.SPLIT - 1
    sums, denominator, maximum = softmax.sums, softmax.denominator, softmax.maximum
    if is_last:
        gl.store(partials.arrived + pair, 0)
        for other in gl.static_range(sizes.SPLIT):
            maximum = gl.maximum(maximum, gl.load(partials.maxima + (start + other) * sizes.ROWS + row))
        sums = gl.full((sizes.WIDTH, sizes.ROWS), 0.0, gl.float32, layout)
        denominator = gl.full((sizes.ROWS,), 0.0, gl.float32, gl.SliceLayout(0, layout))
        for other in gl.static_range(sizes.SPLIT):
            shrink = gl.exp2(gl.load(partials.maxima + (start + other) * sizes.ROWS + row) - maximum)
            denominator += shrink * gl.load(partials.denominators + (start + other) * sizes.ROWS + row)
            own = gl.load(partials.sums + (start + other) * (sizes.WIDTH * sizes.ROWS) + place)
            sums += shrink[None, :] * own
    return Softmax(sums, denominator, maximum), is_last


@gluon.jit
def store_heads(softmax, out, batch, head, sizes, num_warps: gl.constexpr):
    """y [ROWS, WIDTH] of a head to out [batch, n, HEADS, WIDTH], sixteen bytes a store."""
    lanes: gl.constexpr = gl.BlockedLayout([1, 8], [256 // sizes.WIDTH, sizes.WIDTH // 8], [num_warps, 1], [1, 0])
    y = (softmax.sums / softmax.denominator[None, :]).to(out.dtype.element_ty)
    y = gl.convert_layout(y.permute((1, 0)), lanes)
    row = gl.arange(0, sizes.ROWS, gl.SliceLayout(1, lanes))
    channel = gl.arange(0, sizes.WIDTH, gl.SliceLayout(0, lanes))
    start = (batch.to(gl.int64) * sizes.n + row[:, None]) * sizes.HEADS + head
    gl.store(out + start * sizes.WIDTH + channel[None, :], y, mask=(row < sizes.n)[:, None])
