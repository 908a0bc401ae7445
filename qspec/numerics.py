"""THE definition of scale, zero point, rounding, clipping and dequantization. Nothing else derives them again.

For a slice x of one scale group and a format with codes [qmin, qmax]:

    symmetric    s = clip * max|x| / qmax                 q = clamp(round_half_even(x / s), qmin, qmax)
    asymmetric   s = clip * (max - min) / (qmax - qmin)   z = clamp(round_half_even(qmin - clip * min / s), qmin, qmax)
                                                          q = clamp(round_half_even(x / s) + z, qmin, qmax)
    dequantize   x^ = s * (q - z)

min and max include 0, so that zero is always exact. Scales are rounded to the dtype in which they are stored before
any code is computed from them, and a slice of zeros gets scale 1. Divisions are IEEE float32 divisions, as in the
kernels.

Float formats are symmetric; q is the nearest number of the format, to even, of at most qmax, and a code is its pattern
of bits: e4m3 (OCP OFP8), or e2m1 (OCP MX 1.0), whose four bits are extended with their first, as a nibble's are.

    fp8_e4m3     s = clip * max|x| / 448
    mxfp4        s = 2^(floor(log2(clip * max|x|)) - 2), of 32 channels: MX 1.0, section 6.3; stored as e8m0
    nvfp4        s = b u, of 16 channels: b = e4m3(clip * max|x| / 6 / u), 2^-9 or more, is stored, and of each row
                 u = 2^(floor(log2 t) - 7) with t = clip * max|row| / 6, rounded to four bits as b is

nvfp4's unit u is a power of two of the row, where NVIDIA's is a number of the tensor: linears keep theirs when they are
merged, a token's needs no calibration, and s is exact in float32. The largest b of a row is 128 to 240. Powers of two
are no smaller than 2^-100.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from qspec.errors import NumericsError
from qspec.formats import NUMBER_FORMATS, NumberFormat, TensorFormat

MSE_GRID = 100  # candidates of the clip search, as in QuaRot (arXiv 2404.00456): ratios 1 .. 0.2, |error|^2.4
MSE_SHRINK = 0.8
MSE_NORM = 2.4
MX_ELEMENT = 2  # exponent of the largest e2m1
LARGEST_BLOCK = 7  # exponent of the largest b of an nvfp4 row
LEAST = 27  # biased exponent of 2^-100


@dataclass(frozen=True)
class Quantized:
    """Codes of a [rows, columns] tensor with their scales.

    codes: int8 [rows, columns]. scale: float32 or float16 [rows, groups], of a float format's blocks s itself.
    zero: int8 [rows, groups], None if symmetric.
    """

    codes: Tensor
    scale: Tensor
    zero: Tensor | None
    format: TensorFormat

    def dequantize(self) -> Tensor:
        """float32 [rows, columns]."""
        return dequantize(self.codes, self.scale, self.zero, self.format.number)

    def signed(self) -> Quantized:
        """The same values by codes of the signed format of equal width: unsigned codes and zero points, half the range
        lower, which leaves s (q - z) as it is."""
        if self.format.number.kind != "uint" or self.zero is None:
            return self
        number = NUMBER_FORMATS[f"int{self.format.number.bits}"]
        half = int(number.qmin)
        return Quantized(self.codes + half, self.scale, self.zero + half, replace(self.format, number=number))


def scale_dtype(fmt: TensorFormat) -> torch.dtype:
    """The dtype in which a weight's scales are stored."""
    return torch.float16 if fmt.scale_bits() == 16 else torch.float32


def weight_scales(w: Tensor, fmt: TensorFormat, clip: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
    """Scale and zero point of every group of W, [rows, groups] each, the scale in its stored dtype.

    w: float32 [rows, columns]. clip: ratio of each group's range, [rows, groups], in place of the format's own clip.
    Raises NumericsError on values that are not finite.
    """
    grouped = _grouped(w, fmt)
    if clip is not None:
        return range_scales(grouped, fmt.number, fmt.symmetric, clip, scale_dtype(fmt))
    if fmt.clip.kind == "mse":
        return _searched(grouped, fmt)
    return range_scales(grouped, fmt.number, fmt.symmetric, fmt.clip.ratio, scale_dtype(fmt))


def quantize_weight(w: Tensor, fmt: TensorFormat, clip: Tensor | None = None) -> Quantized:
    """Round-to-nearest of W [rows, columns] with scales of its own; clip as in `weight_scales`."""
    scale, zero = weight_scales(w, fmt, clip)
    return Quantized(encode(w, scale, zero, fmt.number), scale, zero, fmt)


def quantize_activations(x: Tensor, fmt: TensorFormat) -> Quantized:
    """Dynamic quantization of X [tokens, columns], per token or per group; scales in float32."""
    scale, zero = range_scales(_grouped(x.float(), fmt), fmt.number, fmt.symmetric, fmt.clip.ratio, torch.float32)
    return Quantized(encode(x.float(), scale, zero, fmt.number), scale, zero, fmt)


def range_scales(
    grouped: Tensor, number: NumberFormat, symmetric: bool, clip: float | Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor | None]:
    """The formulas of the module's docstring for x [rows, groups, size]; clip is a number or [rows, groups]."""
    if number.block:
        return _block_scales(grouped.abs().amax(-1) * clip, number), None
    if symmetric:
        peak = grouped.abs().amax(-1)
        scale = _stored(peak * clip / number.qmax, dtype)
        return scale, None
    low = grouped.amin(-1).clamp(max=0) * clip
    high = grouped.amax(-1).clamp(min=0) * clip
    scale = _stored((high - low) / (number.qmax - number.qmin), dtype)
    zero = (number.qmin - low / scale.float()).round().clamp(number.qmin, number.qmax)
    return scale, zero.to(torch.int8)


def encode(x: Tensor, scale: Tensor, zero: Tensor | None, number: NumberFormat) -> Tensor:
    """Codes int8 of x [rows, columns] for given scales [rows, groups]."""
    grouped = x.reshape(x.shape[0], scale.shape[1], -1)
    quotient = grouped / scale.float().unsqueeze(-1)
    if number.kind == "float":
        return _pattern(quotient, number).reshape(x.shape)
    codes = quotient.round()
    if zero is not None:
        codes = codes + zero.unsqueeze(-1)
    return codes.clamp(number.qmin, number.qmax).to(torch.int8).reshape(x.shape)


def dequantize(codes: Tensor, scale: Tensor, zero: Tensor | None, number: NumberFormat) -> Tensor:
    """x^ = s (q - z), float32 [rows, columns]."""
    grouped = decode(codes, number).reshape(codes.shape[0], scale.shape[1], -1)
    if zero is not None:
        grouped = grouped - zero.float().unsqueeze(-1)
    return (grouped * scale.float().unsqueeze(-1)).reshape(codes.shape)


def decode(codes: Tensor, number: NumberFormat) -> Tensor:
    """The numbers that codes int8 stand for, float32."""
    if number.kind != "float":
        return codes.float()
    if number.bits == 8:
        return codes.view(torch.float8_e4m3fn).float()
    pattern = (codes & 7).float()  # 0, 1/2, 1, 3/2, 2, 3, 4, 6
    size = torch.where(pattern < 4, pattern / 2, torch.where(pattern < 6, pattern - 2, pattern * 2 - 8))
    return torch.where(codes < 0, -size, size)


def pack_scales(scale: Tensor, number: NumberFormat) -> tuple[Tensor, Tensor | None]:
    """Scales s float32 [rows, groups] of a float format's blocks as they are stored: bytes uint8 [rows, groups] and,
    of nvfp4, units u float32 [rows]."""
    if not number.unit_bits:
        return _exponent(scale).to(torch.uint8), None
    unit = _power(_exponent(scale.amax(1)) - LARGEST_BLOCK)
    return _e4m3(scale / unit.unsqueeze(1)).view(torch.uint8), unit


def unpack_scales(stored: Tensor, unit: Tensor | None) -> Tensor:
    """The inverse of `pack_scales`."""
    if unit is None:
        return _power(stored.int(), least=0)
    return stored.view(torch.float8_e4m3fn).float() * unit.unsqueeze(1)


def _searched(grouped: Tensor, fmt: TensorFormat) -> tuple[Tensor, Tensor | None]:
    """The clip ratio of each group that minimises sum |x - x^|^2.4 over the grid."""
    rows, groups, _ = grouped.shape
    flat = grouped.reshape(rows, -1)
    best = torch.full((rows, groups), float("inf"), device=grouped.device)
    ratio = torch.ones_like(best)
    for step in range(int(MSE_GRID * MSE_SHRINK) + 1):
        candidate = 1 - step / MSE_GRID
        scale, zero = range_scales(grouped, fmt.number, fmt.symmetric, candidate, scale_dtype(fmt))
        rounded = dequantize(encode(flat, scale, zero, fmt.number), scale, zero, fmt.number).reshape(grouped.shape)
        error = (rounded - grouped).abs_().pow_(MSE_NORM).sum(-1)
        better = error < best
        best = torch.where(better, error, best)
        ratio = torch.where(better, candidate, ratio)
    return range_scales(grouped, fmt.number, fmt.symmetric, ratio, scale_dtype(fmt))


def _block_scales(peak: Tensor, number: NumberFormat) -> Tensor:
    """s of blocks with clip * max|x| = peak [rows, groups], by the module's docstring."""
    if not bool(torch.isfinite(peak).all()):
        raise NumericsError("a scale is NaN or Inf")
    if not number.unit_bits:
        return _power(_exponent(peak) - MX_ELEMENT)
    ideal = peak / number.qmax
    unit = _power(_exponent(_four_bits(ideal.amax(1))) - LARGEST_BLOCK).unsqueeze(1)
    return _e4m3((ideal / unit).clamp(min=2.0**-9)).float() * unit


def _pattern(v: Tensor, number: NumberFormat) -> Tensor:
    """Codes int8 of the numbers of a float format nearest to v."""
    if number.bits == 8:
        return _e4m3(v).view(torch.int8)
    size = v.abs().clamp(max=number.qmax)  # steps of 1/2 to 2, of 1 to 4, of 2 to 6
    pattern = torch.where(size < 2, (size * 2).round(), torch.where(size < 4, size.round() + 2, (size / 2).round() + 4))
    return torch.where(v.signbit(), pattern - 8, pattern).to(torch.int8)


def _e4m3(v: Tensor) -> Tensor:
    return v.clamp(-448, 448).to(torch.float8_e4m3fn)


def _four_bits(v: Tensor) -> Tensor:
    """v > 0 rounded to four significant bits, half to even."""
    bits = v.contiguous().view(torch.int32)
    return ((bits + 0x7FFFF + ((bits >> 20) & 1)) & ~0xFFFFF).view(torch.float32)


def _exponent(v: Tensor) -> Tensor:
    """floor(log2 v) + 127 of normal v > 0, int32."""
    return v.contiguous().view(torch.int32) >> 23


def _power(biased: Tensor, least: int = LEAST) -> Tensor:
    """2^(biased - 127), float32; no less than 2^(least - 127)."""
    return (biased.clamp(min=least) << 23).view(torch.float32)


def _grouped(x: Tensor, fmt: TensorFormat) -> Tensor:
    if fmt.granularity.kind == "tensor":
        raise NumericsError("per-tensor scales are not a kernel format", hint="use per channel or per group")
    return x.reshape(x.shape[0], -1, fmt.group(x.shape[1]))


def _stored(scale: Tensor, dtype: torch.dtype) -> Tensor:
    stored = scale.to(dtype)
    if not bool(torch.isfinite(stored).all()):
        raise NumericsError("a scale is NaN, Inf or too large for its stored dtype")
    return torch.where(stored > 0, stored, torch.ones_like(stored))


def sqnr_db(exact: Tensor, rounded: Tensor) -> float:
    """Signal to quantization noise, 10 log10(||x||^2 / ||x - x^||^2), summed in float64; 200 where nothing was lost."""
    noise = float((exact.double() - rounded.double()).square().sum())
    signal = float(exact.double().square().sum())
    return 200.0 if noise == 0 or signal == 0 else 10 * math.log10(signal / noise)
