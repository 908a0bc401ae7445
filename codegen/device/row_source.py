"""The rows that are quantized, from what is in memory: x, RMSNorm(x), or f(x) up."""

import triton
import triton.language as tl

from .gates import GELU_TANH_PTX, SILU_PTX, activate
from .row_operands import real_cells
from .row_statistics import sum_of_squares


@triton.jit
def load_rows(source, gains, tile, K: tl.constexpr, PDL: tl.constexpr):
    """Y float32 [ROWS, places], 0 where nothing is real."""
    start, mask = tile.row[:, None].to(tl.int64) * source.stride, real_cells(tile)
    y = tl.load(source.x + start + tile.channel[None, :], mask=mask, other=0.0).to(tl.float32)
    if source.up is not None:
        up = tl.load(source.up + start + tile.channel[None, :], mask=mask, other=0.0).to(tl.float32)
        y = as_stored(as_stored(activate_row(y, source.ACTIVATION, PDL), source.x) * up, source.x)
    if source.gain is not None:
        y = rms_norm(y, gains, source, K)
    return y


@triton.jit
def rms_norm(y, gains, source, K: tl.constexpr):
    """gain y / sqrt(mean(y^2) + eps), rounded to the dtype of x before and after the gain."""
    factor = tl.div_rn(1.0, tl.sqrt_rn(tl.div_rn(sum_of_squares(y), K * 1.0) + source.eps))
    return as_stored(as_stored(y * factor[:, None], source.x) * gains.to(tl.float32)[None, :], source.x)


@triton.jit
def activate_row(y, ACTIVATION: tl.constexpr, PDL: tl.constexpr):
    """`activate`; PDL stands for compute capability 9.0 and later."""
    if PDL:
        PTX: tl.constexpr = SILU_PTX if ACTIVATION == "silu" else GELU_TANH_PTX
        return tl.inline_asm_elementwise(PTX, "=f,f", [y], dtype=tl.float32, is_pure=True, pack=1)
    else:
        return activate(y, ACTIVATION)


@triton.jit
def as_stored(y, x):
    """float32 y rounded to the dtype of pointer x."""
    return y.to(x.dtype.element_ty).to(tl.float32)
