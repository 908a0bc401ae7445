"""Codes of float32 values and their scales."""

import triton
import triton.language as tl

from .row_scales import ROUNDER, SMALLEST_SCALE, round_half_even, to_e4m3


@triton.jit
def encode(y, s, z, LONG: tl.constexpr, form):
    """q = clamp(round_half_even(y / s) + z, QMIN, QMAX) int8, or the pattern of y / s in the float format.

    s, z: scale and zero point that broadcast to y, z None if symmetric. LONG: whether y has more than 11 bits.
    """
    v = quotient(y, s, LONG)
    if z is not None:
        v = round_half_even(v) + z
    if form.NUMBER == "mxfp4" or form.NUMBER == "nvfp4":
        return to_e2m1(v) | ((y.to(tl.int32, bitcast=True) >> 28) & 8)
    else:
        if form.CLIP != 1.0 or z is not None:  # otherwise no quotient is beyond its own row's range
            v = tl.minimum(tl.maximum(v, form.QMIN), form.QMAX)
        if form.NUMBER == "int":
            return (v + ROUNDER).to(tl.int32, bitcast=True).to(tl.int8)  # the integer is the sum's last bits
        else:
            return (to_e4m3(v) | ((y.to(tl.int32, bitcast=True) >> 24) & 0x80)).to(tl.int8)


@triton.jit
def quotient(y, s, LONG: tl.constexpr):
    """y / s, that rounds to the integers that the IEEE quotient rounds to, for s from 2^-100 to 2^100.

    y meets the reciprocal and what that lacks in one fused operation. LONG, of y with more than 11 bits, where the sum
    of two products may miss a tie by a last bit: corrected by the exact remainder (Markstein 1990).
    """
    s = tl.maximum(s, SMALLEST_SCALE)
    inverse = tl.div_rn(1.0, s)
    rest = tl.fma(inverse, -s, 1.0) * inverse
    v = tl.fma(y, inverse, y * rest)
    if LONG:
        v = tl.fma(tl.fma(v, -s, y), inverse, v)
    return v


@triton.jit
def to_e2m1(v):
    """The pattern int32 of |v|, at most 6, in 2 bits of exponent and 1 of mantissa, nearest, half to even."""
    size = tl.minimum(tl.abs(v), 6.0)
    steps = tl.where(size < 2.0, 2.0, tl.where(size < 4.0, 1.0, 0.5))
    first = tl.where(size < 2.0, 0.0, tl.where(size < 4.0, 2.0, 4.0))
    return (round_half_even(size * steps) + first).to(tl.int32)
