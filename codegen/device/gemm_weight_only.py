"""The weight-only GEMM: floating X, codes of W decoded exactly, scales on the float32 sums, in plain Triton."""

import triton
import triton.language as tl

from .epilogue import store_tile
from .operands import own_tile
from .pieces import sum_row, sum_step
from .scales import load_weight_scale, load_weight_zero
from .unpack import decode_codes


@triton.jit
def gemm_weight_only(g, out, M, N):
    """Y [M, N] = X W^T: y[m, n] = u[n] sum over steps of s[n] sum over its k of x[m, k] (q[n, k] - z[n]), and bias.

    q - z is exact in every dtype of X, so weights are multiplied without a rounding of their own.
    """
    tile = own_tile(g, M, N)
    y = tl.full((g.blocks.BLOCK_N, g.blocks.BLOCK_M), 0.0, tl.float32)
    if g.blocks.STEP == 0:
        if g.w.zero is not None:
            zero = load_weight_zero(g.w, tile, 0, g.blocks.STEP)
            y = sum_row(y, add_float_product, zero, g, tile)
        else:
            y = sum_row(y, add_float_product, None, g, tile)
        y = y * load_weight_scale(g.w, tile, 0, g.blocks.STEP)[:, None]
    else:
        for step in range(g.blocks.K // g.blocks.STEP):
            t = tl.full((g.blocks.BLOCK_N, g.blocks.BLOCK_M), 0.0, tl.float32)
            if g.w.zero is not None:
                zero = load_weight_zero(g.w, tile, step, g.blocks.STEP)
                t = sum_step(t, add_float_product, step, zero, g, tile)
            else:
                t = sum_step(t, add_float_product, step, None, g, tile)
            y = y + t * load_weight_scale(g.w, tile, step, g.blocks.STEP)[:, None]
        if g.w.unit is not None:
            y = y * tl.load(g.w.unit + tile.n, mask=tile.n_inside, other=0.0)[:, None]
    store_tile(y, out, tile)


@triton.jit
def add_float_product(sums, codes, values, zero, g):
    """W X^T of one piece in the dtype of X; float32 X in three TF32 products, near float32's own precision."""
    weights = decode_codes(codes, g.w.NUMBER)
    if zero is not None:
        weights = weights - zero[:, None]
    return tl.dot(weights.to(g.x.data.dtype.element_ty), values, sums, input_precision="tf32x3")
