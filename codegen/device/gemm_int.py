"""The integer GEMM: exact int32 sums of codes, then scales, in plain Triton."""

import triton
import triton.language as tl

from .epilogue import store_tile
from .operands import own_tile
from .pieces import sum_row, sum_step
from .scales import load_activation_scale, load_activation_zero, load_weight_scale, load_weight_zero


@triton.jit
def gemm_int(g, out, M, N):
    """Y [M, N] = X W^T of codes: y[m, n] = sum over steps of t[m, n] sA[m] sW[n], plus the bias.

    t = sum over the step's k of (qA[m, k] - zA[m]) (qW[n, k] - zW[n]) is exact in int32; the float32 operations after
    it are not fused and come in the order written, so that every device gives the same bits.
    """
    tile = own_tile(g, M, N)
    if g.blocks.STEP == 0:
        sums = sum_row(no_int_sums(g), add_int_product, None, g, tile)
        y = without_zeros(sums, 0, g, tile).to(tl.float32)
    else:
        y = tl.full((g.blocks.BLOCK_N, g.blocks.BLOCK_M), 0.0, tl.float32)
        for step in range(g.blocks.K // g.blocks.STEP):
            sums = sum_step(no_int_sums(g), add_int_product, step, None, g, tile)
            t = without_zeros(sums, step, g, tile).to(tl.float32)
            if g.x.GROUP > 0:
                t = t * load_activation_scale(g.x, tile, step, g.blocks.STEP)[None, :]
            if g.w.GROUP > 0:
                t = t * load_weight_scale(g.w, tile, step, g.blocks.STEP)[:, None]
            y = y + t
    if g.x.GROUP == 0:
        y = y * load_activation_scale(g.x, tile, 0, g.blocks.STEP)[None, :]
    if g.w.GROUP == 0:
        y = y * load_weight_scale(g.w, tile, 0, g.blocks.STEP)[:, None]
    store_tile(y, out, tile)


@triton.jit
def no_int_sums(g):
    """Zeros: of products [n, m], of the codes of X [m] and of W [n]."""
    total = tl.full((g.blocks.BLOCK_N, g.blocks.BLOCK_M), 0, tl.int32)
    return total, tl.full((g.blocks.BLOCK_M,), 0, tl.int32), tl.full((g.blocks.BLOCK_N,), 0, tl.int32)


@triton.jit
def add_int_product(sums, codes, values, zero, g):
    """W X^T of one piece, and the sums of its codes that the other operand's zero points meet."""
    total, x_sum, w_sum = sums
    total = tl.dot(codes, values, total, out_dtype=tl.int32)
    if g.w.zero is not None:
        x_sum += tl.sum(values.to(tl.int32), axis=0)
    if g.x.zero is not None:
        w_sum += tl.sum(codes.to(tl.int32), axis=1)
    return total, x_sum, w_sum


@triton.jit
def without_zeros(sums, step, g, tile):
    """sum (qA - zA)(qW - zW) = sum qA qW - zW sum qA - zA (sum qW - k zW), over the k channels of a step or row."""
    total, x_sum, w_sum = sums
    if g.w.zero is not None:
        zero = load_weight_zero(g.w, tile, step, g.blocks.STEP)
        total -= zero[:, None] * x_sum[None, :]
        if g.x.zero is not None:
            w_sum -= zero * (g.blocks.STEP if g.blocks.STEP > 0 else g.blocks.K)
    if g.x.zero is not None:
        total -= w_sum[:, None] * load_activation_zero(g.x, tile, step, g.blocks.STEP)[None, :]
    return total
