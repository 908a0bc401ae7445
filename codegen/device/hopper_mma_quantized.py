"""Sums of quantized operands on compute capability 9.0: of int8 codes, or of fp8_e4m3."""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, warpgroup_mma, warpgroup_mma_wait

from .hopper_operands import WARPGROUP_ROWS, WARPGROUP_WARPS, sum_dtype
from .hopper_shared import operand_of, operand_tiles


@gluon.jit
def low_nibble_bytes(w):
    """int8 of the low nibbles of bytes, at the top of theirs."""
    return gl.inline_asm_elementwise(
        "{ .reg .b32 t; shl.b32 t, $1, 4; and.b32 $0, t, 0xF0F0F0F0; }",
        "=r,r",
        [w],
        dtype=gl.int8,
        is_pure=True,
        pack=4,
    )


@gluon.jit
def high_nibble_bytes(w):
    """int8 of the high nibbles of bytes, at the top of theirs."""
    return gl.inline_asm_elementwise("and.b32 $0, $1, 0xF0F0F0F0;", "=r,r", [w], dtype=gl.int8, is_pure=True, pack=4)


@gluon.constexpr_function
def instruction_layout(columns):
    """Of sums [64, columns]; an instruction of int8 has up to 128 of them."""
    return gl.NVMMADistributedLayout([3, 0], [WARPGROUP_WARPS, 1], [16, min(columns, 128), 32])


@gluon.jit
def multiply_codes(w, x_tile, block: gl.constexpr, total, accumulate, COLUMNS: gl.constexpr):
    """The sums [64, COLUMNS] and the products of a block, which are under way.

    Packed nibbles are two operands from registers: low ones the first 64 channels of a block, high ones the rest.
    """
    if w.dtype == gl.uint8:
        x_low = operand_of(x_tile, 2 * block, COLUMNS)
        x_high = operand_of(x_tile, 2 * block + 1, COLUMNS)
        total = warpgroup_mma(low_nibble_bytes(w), x_low, total, use_acc=accumulate, is_async=True)
        return warpgroup_mma(high_nibble_bytes(w), x_high, total, is_async=True)
    else:
        return warpgroup_mma(w, operand_of(x_tile, block, COLUMNS), total, use_acc=accumulate, is_async=True)


@gluon.jit
def sum_quantized_unit(g, shared, n0, first, last, k, WARPGROUP: gl.constexpr, COLUMNS: gl.constexpr):
    """t[n, m] = sum over k of qA[m, k] qW[n, k] of a unit [64, COLUMNS]: int32 and exact, or float32 of fp8_e4m3.

    A tuple: of tiles of 192 tokens those of 128 and of 64.
    """
    STAGES: gl.constexpr = g.STAGES
    K_SLICES: gl.constexpr = g.K_SLICES
    WARPGROUPS: gl.constexpr = g.BLOCK_N // WARPGROUP_ROWS
    X_BOXES: gl.constexpr = g.x.data.block_shape[0]  # of a stage
    WIDTH: gl.constexpr = g.x.data.block_shape[2]
    FIRST: gl.constexpr = COLUMNS if g.x.rest is None else g.x.data.block_shape[1]
    REST: gl.constexpr = 64 if g.x.rest is None else g.x.rest.block_shape[1]
    layout: gl.constexpr = instruction_layout(FIRST)
    start = first + (WARPGROUP // WARPGROUPS + K_SLICES - k % K_SLICES) % K_SLICES
    total = gl.zeros((WARPGROUP_ROWS, FIRST), sum_dtype(g.x.data.dtype), layout)
    rest = gl.zeros((WARPGROUP_ROWS, REST), sum_dtype(g.x.data.dtype), instruction_layout(REST))
    for stage in range(start, last, K_SLICES):
        slot = (k + stage - first) % STAGES
        mbarrier.wait(shared.full.index(slot), (k + stage - first) // STAGES & 1)
        w_box = shared.w.index(slot * WARPGROUPS + WARPGROUP % WARPGROUPS)
        w_tile = operand_tiles(w_box, g.BLOCKS, WARPGROUP_ROWS, g.w.codes.block_shape[2])
        x_tile = operand_tiles(shared.x.index(slot), X_BOXES, g.x.data.block_shape[1], WIDTH)
        for block in gl.static_range(g.BLOCKS):
            accumulate = stage > start or block > 0
            w = w_tile.index(block)
            if g.w.BITS == 4:
                w = w.load(gl.DotOperandLayout(0, layout, 4))
            total = multiply_codes(w, x_tile, block, total, accumulate, FIRST)
            if g.x.rest is not None:
                rest_tile = operand_tiles(shared.x_rest.index(slot), X_BOXES, REST, WIDTH)
                rest = multiply_codes(w, rest_tile, block, rest, accumulate, REST)
        if g.w.BITS == 4:
            # the other warpgroup multiplies while this one unpacks
            total, rest = wait_for_sums(0, total, rest, g)
            mbarrier.arrive(shared.empty.index(slot), count=1)
        else:
            total, rest = wait_for_sums(g.BLOCKS, total, rest, g)  # those of the stage before are done
            before = (slot + STAGES - K_SLICES) % STAGES
            mbarrier.arrive(shared.empty.index(before), count=1, pred=stage > start)
    if g.w.BITS == 8:
        total, rest = wait_for_sums(0, total, rest, g)
        final = k + start - first + (last - 1 - start) // K_SLICES * K_SLICES
        mbarrier.arrive(shared.empty.index(final % STAGES), count=1, pred=start < last)
    if g.x.rest is None:
        return (total,)
    else:
        return (total, rest)


@gluon.jit
def wait_for_sums(BLOCKS: gl.constexpr, total, rest, g):
    """The sums of a unit when the instructions of all blocks but the last BLOCKS are done."""
    if g.x.rest is None:
        return warpgroup_mma_wait(BLOCKS, deps=[total]), rest
    else:
        return warpgroup_mma_wait(2 * BLOCKS, deps=[total, rest])
