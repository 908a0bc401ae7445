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


@gluon.jit
def sum_quantized_unit(g, shared, n0, first, last, k, WARPGROUP: gl.constexpr, COLUMNS: gl.constexpr):
    """t[n, m] = sum over k of qA[m, k] qW[n, k] of a unit [64, COLUMNS]: int32 and exact, or float32 of fp8_e4m3.

    Packed nibbles are two operands from registers: low ones the first 64 channels of a block, high ones the rest.
    """
    STAGES: gl.constexpr = g.STAGES
    K_SLICES: gl.constexpr = g.K_SLICES
    WARPGROUPS: gl.constexpr = g.BLOCK_N // WARPGROUP_ROWS
    X_BOXES: gl.constexpr = g.x.data.block_shape[0]  # of a stage
    layout: gl.constexpr = gl.NVMMADistributedLayout(
        [3, 0], [WARPGROUP_WARPS, 1], [16, COLUMNS if COLUMNS < 128 else 128, 32]
    )
    start = first + (WARPGROUP // WARPGROUPS + K_SLICES - k % K_SLICES) % K_SLICES
    total = gl.zeros((WARPGROUP_ROWS, COLUMNS), sum_dtype(g.x.data.dtype), layout)
    for stage in range(start, last, K_SLICES):
        slot = (k + stage - first) % STAGES
        mbarrier.wait(shared.full.index(slot), (k + stage - first) // STAGES & 1)
        w_box = shared.w.index(slot * WARPGROUPS + WARPGROUP % WARPGROUPS)
        w_tile = operand_tiles(w_box, g.BLOCKS, WARPGROUP_ROWS, g.w.codes.block_shape[2])
        x_tile = operand_tiles(shared.x.index(slot), X_BOXES, g.BLOCK_M, g.x.data.block_shape[2])
        for block in gl.static_range(g.BLOCKS):
            accumulate = stage > start or block > 0
            if g.w.BITS == 4:
                w = w_tile.index(block).load(gl.DotOperandLayout(0, layout, 4))
                x_low = operand_of(x_tile, 2 * block, COLUMNS)
                x_high = operand_of(x_tile, 2 * block + 1, COLUMNS)
                total = warpgroup_mma(low_nibble_bytes(w), x_low, total, use_acc=accumulate, is_async=True)
                total = warpgroup_mma(high_nibble_bytes(w), x_high, total, is_async=True)
            else:
                x = operand_of(x_tile, block, COLUMNS)
                total = warpgroup_mma(w_tile.index(block), x, total, use_acc=accumulate, is_async=True)
        if g.w.BITS == 4:
            # the other warpgroup multiplies while this one unpacks
            total = warpgroup_mma_wait(0, deps=[total])
            mbarrier.arrive(shared.empty.index(slot), count=1)
        else:
            total = warpgroup_mma_wait(g.BLOCKS, deps=[total])  # those of the stage before are done
            before = (slot + STAGES - K_SLICES) % STAGES
            mbarrier.arrive(shared.empty.index(before), count=1, pred=stage > start)
    if g.w.BITS == 8:
        total = warpgroup_mma_wait(0, deps=[total])
        final = k + start - first + (last - 1 - start) // K_SLICES * K_SLICES
        mbarrier.arrive(shared.empty.index(final % STAGES), count=1, pred=start < last)
    return total
