"""Scales and zero points from what was measured of a row or group, float32. A NaN among the values stays one."""

import triton
import triton.language as tl

SMALLEST_SCALE = tl.constexpr(2.0**-100)  # its reciprocal, and what that lacks, are normal numbers
# Added to a number of at most 2^22 it leaves an integer in the sum's last bits, rounded half to even: 1.5 * 2^23.
ROUNDER = tl.constexpr(12582912.0)


@triton.jit
def find_scales(low, high, form):
    """Scale s and zero point z, 0 if symmetric, from `find_range`; form: `CodeFormat`, of anything but nvfp4."""
    if form.SYMMETRIC:
        return symmetric_scale(high, form), 0.0
    else:
        return asymmetric_scale(low, high, form)


@triton.jit
def symmetric_scale(peak, form):
    """s = CLIP peak / REACH, 1 if that is 0; of mxfp4 the power of two above it."""
    ideal = tl.div_rn(clipped(peak, form), form.REACH)
    if form.NUMBER == "mxfp4":
        biased = ideal.to(tl.int32, bitcast=True) >> 23
        s = (tl.maximum(biased + 1, 27) << 23).to(tl.float32, bitcast=True)
        return tl.where(biased == 255, float("nan"), s)
    else:
        return tl.where(ideal == 0.0, 1.0, at_least_smallest(ideal))


@triton.jit
def asymmetric_scale(low, high, form):
    """s = CLIP (high - low) / (QMAX - QMIN), 1 if that is 0; z = round(QMIN - CLIP low / s), a float of a code."""
    low, high = clipped(low, form), clipped(high, form)
    s = tl.div_rn(high - low, form.QMAX - form.QMIN)
    s = tl.where(s == 0.0, 1.0, at_least_smallest(s))
    z = round_half_even(form.QMIN - tl.div_rn(low, s))
    return s, tl.minimum(tl.maximum(z, form.QMIN), form.QMAX)


@triton.jit
def nvfp4_unit(peak, form):
    """u = 2^(floor(log2 t) - 7) of a row, t = CLIP peak / 6 rounded to four significant bits."""
    bits = tl.div_rn(clipped(peak, form), form.REACH).to(tl.int32, bitcast=True)
    rounded = (bits + 0x7FFFF + ((bits >> 20) & 1)) >> 23
    power = (tl.maximum(rounded - 7, 27) << 23).to(tl.float32, bitcast=True)
    return tl.where(bits >= 0x7F800000, float("nan"), power)


@triton.jit
def nvfp4_scale(peak, unit, form):
    """b = e4m3(CLIP peak / 6 / u), 2^-9 or more, as a pattern int32, and s = b u."""
    ideal = tl.div_rn(tl.div_rn(clipped(peak, form), form.REACH), unit)
    pattern = to_e4m3(tl.maximum(ideal, 2.0**-9))
    return pattern, (pattern << 20).to(tl.float32, bitcast=True) * 2.0**120 * unit  # bits so placed are 2^-120 b


@triton.jit
def clipped(y, form):
    """CLIP y."""
    if form.CLIP == 1.0:
        return y
    else:
        return y * form.CLIP


@triton.jit
def at_least_smallest(s):
    """max(s, 2^-100), a NaN as it is."""
    return tl.where(s < SMALLEST_SCALE, SMALLEST_SCALE, s)


@triton.jit
def round_half_even(v):
    """The integer nearest to |v| <= 2^22, of two the even one, as a float."""
    return (v + ROUNDER) - ROUNDER


@triton.jit
def to_e4m3(v):
    """The pattern int32 of |v| <= 448 in 4 bits of exponent and 3 of mantissa, nearest, half to even."""
    bits = v.to(tl.int32, bitcast=True) & 0x7FFFFFFF
    normal = ((bits + 0x7FFFF + ((bits >> 20) & 1)) >> 20) - 960
    small = (tl.abs(v) * 512.0 + ROUNDER).to(tl.int32, bitcast=True) & 0xF
    return tl.where(bits < 0x3C800000, small, normal)
