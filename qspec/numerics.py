"""THE definition of scale, zero point, rounding, clipping and dequantization. Nothing else derives them again.

For a slice x of one scale group and a format with codes [qmin, qmax]:

    symmetric    s = clip * max|x| / reach                q = clamp(round_half_even(x / s), qmin, qmax)
    asymmetric   s = clip * (max - min) / (qmax - qmin)   z = clamp(round_half_even(qmin - clip * min / s), qmin, qmax)
                                                          q = clamp(round_half_even(x / s) + z, qmin, qmax)
    dequantize   x^ = s * (q - z)

min and max include 0, so that zero is always exact. Scales are rounded to the dtype in which they are stored before
any code is computed from them, and a slice of zeros gets scale 1. Divisions are IEEE float32 divisions, as in the
kernels.

Reach is (qmax + 1/2) (1 - 2^-10) for integers of 2 to 5 bits. The range's end is half a step off, as much as any value
between two codes may be, and all steps are finer, as in GPTQ's own code and in compressed-tensors, which take qmax +
1/2 itself. That would put both ends at a tie, where +max and -max get codes of unequal size, qmax and qmin, or not, as
the last bit of s has it: opposite weights that cancel would no longer, and devices would differ. The thousandth is more
than float16 rounds of s; values beyond the ends (a clip, GPTQ's updates) still use the lowest code. At 8 bits reach is
qmax: there the peak's own error, s^2 / 4 in place of 0, outweighs steps that are 0.4 % finer. 5 to 7 bits lie between:
half a step wins from about 30 values of a group on at 5 bits, 60 at 6, 130 at 7; examples/grids measures it.

A scale is stored in float16 (groups of a weight), float32, or a byte. It has to fit there: 2^-19, of which float16
holds six bits, to 65504; 2^-100 to 2^127 for float32 and for powers of two. A weight whose scales do not all fit is an
error; only those of groups whose scale is less than 2^-32 of the weight's largest may be raised to the least that
fits, since a float32 sum hardly shows them. Of activations, scales below 2^-100 are raised to that (the kernels of
rotated rows keep them).

Float formats are symmetric; q is the nearest number of the format, to even, of at most qmax, and a code is its pattern
of bits: e4m3 (OCP OFP8), or e2m1 (OCP MX 1.0), whose four bits are extended with their first, as a nibble's are.

    fp8_e4m3     s = clip * max|x| / 448
    mxfp4        s = 2^(floor(log2(clip * max|x| / 7)) + 1), of 32 channels, stored as e8m0: the least power of two
                 with max|x| / s below 7, half a step beyond 6, as in compressed-tensors; MX 1.0, section 6.3,
                 lets it reach 8
    nvfp4        s = b u, of 16 channels: b = e4m3(clip * max|x| / 6 / u), 2^-9 or more, is stored, and of each row
                 u = 2^(floor(log2 t) - 7) with t = clip * max|row| / 6, rounded to four bits as b is

nvfp4's unit u is a power of two of the row, where NVIDIA's is a number of the tensor: linears keep theirs when they are
merged, a token's needs no calibration, and s is exact in float32. The largest b of a row is 128 to 240. Powers of two
are no smaller than 2^-100.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from qspec.errors import NumericsError
from qspec.formats import NUMBER_FORMATS, NumberFormat, TensorFormat

MSE_GRID = 100  # candidates of the clip search, as in QuaRot (arXiv 2404.00456): ratios 1 .. 0.2, |error|^2.4
MSE_SHRINK = 0.8
MSE_NORM = 2.4
LARGEST_BLOCK = 7  # exponent of the largest b of an nvfp4 row
LEAST = 27  # biased exponent of 2^-100
ROOM = 5  # powers of two between a scale and the ends of its stored dtype while passes may still change it
NEGLIGIBLE = 2.0**-32  # of a weight's largest scale: what may be too small for its stored dtype


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


def scale_bounds(dtype: torch.dtype) -> tuple[float, float]:
    """The least and the largest scale that its stored dtype holds well enough; float32 for bytes too."""
    return (2.0**-19, 65504.0) if dtype == torch.float16 else (2.0 ** (LEAST - 127), 2.0**127)


def weight_scales(
    w: Tensor, fmt: TensorFormat, clip: Tensor | None = None, where: str | None = None
) -> tuple[Tensor, Tensor | None]:
    """Scale and zero point of every group of W, [rows, groups] each, the scale in its stored dtype.

    w: float32 [rows, columns]. clip: ratio of each group's range, [rows, groups], in place of the format's own clip.
    where: the layer's role, for errors. Raises NumericsError on values that are not finite, and on scales that do not
    fit their stored dtype.
    """
    grouped = _grouped(w, fmt)
    if clip is None and fmt.clip.kind == "mse":
        scale, zero = _searched(grouped, fmt)
    else:
        ratio = fmt.clip.ratio if clip is None else clip
        scale, zero = range_scales(grouped, fmt.number, fmt.symmetric, ratio, scale_dtype(fmt))
    _require_fit(scale, grouped, fmt, where)
    return scale, zero


def quantize_weight(w: Tensor, fmt: TensorFormat, clip: Tensor | None = None, where: str | None = None) -> Quantized:
    """Round-to-nearest of W [rows, columns] with scales of its own; clip, where and errors as in `weight_scales`."""
    scale, zero = weight_scales(w, fmt, clip, where)
    return Quantized(encode(w, scale, zero, fmt.number), scale, zero, fmt)


def fitting_exponent(weights: Iterable[tuple[Tensor, TensorFormat]]) -> int:
    """An e with which the scales of W 2^e fit their stored dtypes, for every W [rows, columns] float32.

    0 where they fit by a factor of 2^5 as they are, which is left to passes that still move them, and where no e serves
    all. Otherwise the largest scale comes near to 1, or as near as lets the smallest fit.
    """
    least, most, most_of_all = -math.inf, math.inf, 0.0
    for w, fmt in weights:
        ideal = _ideal(_grouped(w, fmt), fmt.number, fmt.symmetric)
        largest = float(ideal.max())
        if largest == 0 or not math.isfinite(largest):
            continue
        smallest = float(ideal[ideal > largest * NEGLIGIBLE].min())
        low, high = scale_bounds(scale_dtype(fmt))
        least = max(least, math.ceil(math.log2(low / smallest)))
        most = min(most, math.floor(math.log2(high / largest)))
        most_of_all = max(most_of_all, largest)
    if least > most or least + ROOM <= 0 <= most - ROOM:
        return 0
    return int(min(max(-math.floor(math.log2(most_of_all)), least), most))


def quantize_activations(x: Tensor, fmt: TensorFormat, where: str | None = None) -> Quantized:
    """Dynamic quantization of X [tokens, columns], per token or per group; scales in float32.

    where: the layer's role, for errors. Raises NumericsError on values that are not finite.
    """
    scale, zero = range_scales(_grouped(x.float(), fmt), fmt.number, fmt.symmetric, fmt.clip.ratio, torch.float32)
    if not bool(torch.isfinite(scale).all()):
        raise NumericsError("a scale of the activations is NaN or Inf", where=where)
    return Quantized(encode(x.float(), scale, zero, fmt.number), scale, zero, fmt)


def range_scales(
    grouped: Tensor, number: NumberFormat, symmetric: bool, clip: float | Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor | None]:
    """The formulas of the module's docstring for x [rows, groups, size]; clip is a number or [rows, groups]."""
    ideal = _ideal(grouped, number, symmetric, clip)
    if number.block:
        return _block_scales(ideal, number), None
    scale = _stored(ideal, dtype)
    if symmetric:
        return scale, None
    low = grouped.amin(-1).clamp(max=0) * clip
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
        if step == 0 and not bool(torch.isfinite(scale).all()):
            break  # no ratio may hide that
        rounded = dequantize(encode(flat, scale, zero, fmt.number), scale, zero, fmt.number).reshape(grouped.shape)
        error = (rounded - grouped).abs_().pow_(MSE_NORM).sum(-1)
        better = error < best
        best = torch.where(better, error, best)
        ratio = torch.where(better, candidate, ratio)
    return range_scales(grouped, fmt.number, fmt.symmetric, ratio, scale_dtype(fmt))


def _ideal(grouped: Tensor, number: NumberFormat, symmetric: bool, clip: float | Tensor = 1.0) -> Tensor:
    """s [rows, groups] of x [rows, groups, size] before it is rounded to what is stored."""
    if symmetric:
        return grouped.abs().amax(-1) * clip / number.reach
    low = grouped.amin(-1).clamp(max=0) * clip
    high = grouped.amax(-1).clamp(min=0) * clip
    return (high - low) / (number.qmax - number.qmin)


def _block_scales(ideal: Tensor, number: NumberFormat) -> Tensor:
    """s of the blocks of a float format, [rows, groups], by the module's docstring; ideal: clip * max|x| / reach."""
    if not bool(torch.isfinite(ideal).all()):
        return ideal
    if not number.unit_bits:
        return _power(_exponent(ideal) + 1)
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
    """Scales as they are stored: those of zeros 1, the others no smaller than the dtype holds well enough."""
    return torch.where(scale == 0, 1.0, scale.clamp(min=scale_bounds(dtype)[0])).to(dtype)


def _require_fit(scale: Tensor, grouped: Tensor, fmt: TensorFormat, where: str | None) -> None:
    """Raises NumericsError where a stored scale [rows, groups] is not what x [rows, groups, size] asks for."""
    low, high = scale_bounds(scale_dtype(fmt))
    fits = torch.isfinite(scale) & (scale.float() > low)
    if bool(fits.all()):
        return
    ideal = _ideal(grouped, fmt.number, fmt.symmetric)
    if not bool(torch.isfinite(ideal).all()):
        raise NumericsError("a weight is NaN or Inf", where=where)
    small = (ideal < low) & (ideal > ideal.max() * NEGLIGIBLE)
    if bool((small | (ideal > high)).any()):
        peaks = grouped.abs().amax(-1)
        raise NumericsError(
            f"the weight's scales do not fit the {str(scale.dtype).removeprefix('torch.')} that they are stored in "
            f"({low:.1e} to {high:.1e}): the largest magnitudes of its groups run from "
            f"{float(peaks[ideal > ideal.max() * NEGLIGIBLE].min()):.1e} to {float(peaks.max()):.1e}",
            where=where,
            hint="scales `per channel` are float32; or keep this layer",
        )


def as_stored(tensor: Tensor, dtype: torch.dtype, name: str) -> Tensor:
    """A kept tensor in the dtype that an artifact holds it in. Raises NumericsError with its name if it overflows."""
    kept = tensor.to(dtype)
    if not bool(torch.isfinite(kept).all()):
        raise NumericsError(
            f"a kept tensor has {float(tensor.abs().max()):.3g}, more than {str(dtype).removeprefix('torch.')} holds",
            where=name,
            hint="the checkpoint's weights must stay below 3.3e38, after the recipe's passes too",
        )
    return kept


def sqnr_db(exact: Tensor, rounded: Tensor) -> float:
    """Signal to quantization noise, 10 log10(||x||^2 / ||x - x^||^2), summed in float64; 200 where nothing was lost."""
    noise = float((exact.double() - rounded.double()).square().sum())
    signal = float(exact.double().square().sum())
    return 200.0 if noise == 0 or signal == 0 else 10 * math.log10(signal / noise)
