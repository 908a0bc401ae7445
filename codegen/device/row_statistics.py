"""What is measured of rows or groups before they are quantized."""

import triton
import triton.language as tl


@triton.jit
def sum_of_squares(y):
    """sum over k of y[m, k]^2 [ROWS]; of four neighbours by one multiplication and three fused ones."""
    even, odd = tl.split(tl.reshape(y, (y.shape[0], y.shape[1] // 4, 2, 2)))
    y0, y2 = tl.split(even)
    y1, y3 = tl.split(odd)
    return tl.sum(tl.fma(y0, y0, tl.fma(y1, y1, tl.fma(y2, y2, y3 * y3))), axis=1)


@triton.jit
def abs_max(y, AXIS: tl.constexpr):
    """max|y| float32, by the order of the bits, in which a NaN is the largest; of 16-bit floats two at once."""
    if y.dtype == tl.float32:
        peak = tl.max(y.to(tl.int32, bitcast=True) & 0x7FFFFFFF, axis=AXIS)
    else:
        peak = tl.reduce(y.to(tl.int16, bitcast=True) & 0x7FFF, AXIS, tl.standard._elementwise_max)
    return peak.to(y.dtype, bitcast=True).to(tl.float32)


@triton.jit
def lowest(y, AXIS: tl.constexpr):
    """min(y, 0) along an axis; a NaN counts as infinite."""
    return tl.minimum(tl.min(tl.where(y == y, y, float("inf")), axis=AXIS), 0.0)


@triton.jit
def highest(y, AXIS: tl.constexpr):
    """max(y, 0) along an axis; a NaN counts as infinite, so that it cannot end as a plausible number."""
    return tl.maximum(tl.max(tl.where(y == y, y, float("inf")), axis=AXIS), 0.0)


@triton.jit
def find_range(y, AXIS: tl.constexpr, dtype: tl.constexpr, SYMMETRIC: tl.constexpr):
    """What the codes of each row or group along an axis span: min(y, 0) to max(y, 0), or 0 to max|y| if symmetric.

    dtype: the narrowest that holds y.
    """
    if SYMMETRIC:
        return 0.0, abs_max(y.to(dtype), AXIS)
    else:
        return lowest(y, AXIS), highest(y, AXIS)
