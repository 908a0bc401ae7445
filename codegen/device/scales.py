"""Scales and zero points of a tile, in float32 and int32."""

import triton
import triton.language as tl

from .operands import group_row
from .unpack import from_e4m3, from_e8m0


@triton.jit
def load_weight_zero(w, tile, step, STEP: tl.constexpr):
    """z 2^(8 - b) int32 [n], lifted as the codes are. Of at most four bits two share a byte, channel 2i in the low."""
    LIFT: tl.constexpr = 2 ** (8 - w.BITS)
    if w.BITS <= 4:
        row = group_row(step, STEP, w.GROUP, (tile.N + 1) // 2)
        zeros = tl.load(w.zero + row + tile.n // 2, mask=tile.n_inside, other=0)
        zeros = (zeros << (4 - tile.n % 2 * 4).to(tl.uint8)) & 0xF0
        zero = zeros.to(tl.int8, bitcast=True).to(tl.int32)
        if LIFT > 16:
            zero = zero * (LIFT // 16)
    else:
        row = group_row(step, STEP, w.GROUP, tile.N)
        zero = tl.load(w.zero + row + tile.n, mask=tile.n_inside, other=0).to(tl.int32)
        if LIFT > 1:
            zero = zero * LIFT
    return zero


@triton.jit
def load_weight_scale(w, tile, step, STEP: tl.constexpr):
    """s / 2^(8 - b) float32 [n], lowered by what the codes are lifted; of float formats s, in nvfp4's units."""
    where = w.scale + group_row(step, STEP, w.GROUP, tile.N) + tile.n
    if w.NUMBER == "nvfp4":
        return from_e4m3(tl.load(where, mask=tile.n_inside, other=0))
    elif w.NUMBER == "mxfp4":
        return from_e8m0(tl.load(where, mask=tile.n_inside, other=0))
    else:
        scale = tl.load(where, mask=tile.n_inside, other=0.0).to(tl.float32)
        if w.NUMBER == "int" and w.BITS < 8:
            scale = scale * (1 / 2 ** (8 - w.BITS))
        return scale


@triton.jit
def load_activation_zero(x, tile, step, STEP: tl.constexpr):
    """z int32 [m]."""
    row = group_row(step, STEP, x.GROUP, tile.M)
    return tl.load(x.zero + row + tile.m, mask=tile.m_inside, other=0).to(tl.int32)


@triton.jit
def load_activation_scale(x, tile, step, STEP: tl.constexpr):
    """s float32 [m]."""
    row = group_row(step, STEP, x.GROUP, tile.M)
    return tl.load(x.scale + row + tile.m, mask=tile.m_inside, other=0.0)
