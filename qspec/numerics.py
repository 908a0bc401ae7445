"""THE definition of scale, zero point, rounding, clipping and dequantization. Nothing else derives them again.

For a slice x of one scale group and a format with codes [qmin, qmax]:

    symmetric    s = clip * max|x| / qmax                 q = clamp(round_half_even(x / s), qmin, qmax)
    asymmetric   s = clip * (max - min) / (qmax - qmin)   z = clamp(round_half_even(qmin - clip * min / s), qmin, qmax)
                                                          q = clamp(round_half_even(x / s) + z, qmin, qmax)
    dequantize   x^ = s * (q - z)

min and max include 0, so that zero is always exact. Scales are rounded to the dtype in which they are stored before
any code is computed from them, and a slice of zeros gets scale 1. Divisions are IEEE float32 divisions, as in the
kernels.
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


@dataclass(frozen=True)
class Quantized:
    """Codes of a [rows, columns] tensor with their scales.

    codes: int8 [rows, columns]. scale: float32 or float16 [rows, groups]. zero: int8 [rows, groups], None if symmetric.
    """

    codes: Tensor
    scale: Tensor
    zero: Tensor | None
    format: TensorFormat

    def dequantize(self) -> Tensor:
        """float32 [rows, columns]."""
        return dequantize(self.codes, self.scale, self.zero)

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
    codes = (grouped / scale.float().unsqueeze(-1)).round()
    if zero is not None:
        codes = codes + zero.unsqueeze(-1)
    return codes.clamp(number.qmin, number.qmax).to(torch.int8).reshape(x.shape)


def dequantize(codes: Tensor, scale: Tensor, zero: Tensor | None) -> Tensor:
    """x^ = s (q - z), float32 [rows, columns]."""
    grouped = codes.reshape(codes.shape[0], scale.shape[1], -1).float()
    if zero is not None:
        grouped = grouped - zero.float().unsqueeze(-1)
    return (grouped * scale.float().unsqueeze(-1)).reshape(codes.shape)


def _searched(grouped: Tensor, fmt: TensorFormat) -> tuple[Tensor, Tensor | None]:
    """The clip ratio of each group that minimises sum |x - x^|^2.4 over the grid."""
    rows, groups, _ = grouped.shape
    flat = grouped.reshape(rows, -1)
    best = torch.full((rows, groups), float("inf"), device=grouped.device)
    ratio = torch.ones_like(best)
    for step in range(int(MSE_GRID * MSE_SHRINK) + 1):
        candidate = 1 - step / MSE_GRID
        scale, zero = range_scales(grouped, fmt.number, fmt.symmetric, candidate, scale_dtype(fmt))
        rounded = dequantize(encode(flat, scale, zero, fmt.number), scale, zero).reshape(grouped.shape)
        error = (rounded - grouped).abs_().pow_(MSE_NORM).sum(-1)
        better = error < best
        best = torch.where(better, error, best)
        ratio = torch.where(better, candidate, ratio)
    return range_scales(grouped, fmt.number, fmt.symmetric, ratio, scale_dtype(fmt))


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
