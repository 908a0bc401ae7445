"""The CPU path: the integers, and the float32 operations in the order, of the generated kernels.

With qA [M, K] and qW [N, K] the codes, zA and zW the zero points (0 if symmetric), and K cut into
steps that divide both operands' groups (one step of K where neither operand is grouped):

    t    = sum over the step of (qA - zA)(qW - zW)     exact integer, rounded once to float32
    t    = t * sA[m, step]                             if activations are grouped
    t    = t * sW[n, step]                             if weights are grouped
    acc  = acc + t                                     in the order of the steps, from 0
    acc  = acc * sA[m]                                 if activations have one scale a token
    acc  = acc * sW[n]                                 if weights have one scale a channel
    y    = acc + b[n], rounded to the dtype of x
    y    = y + residual[m, n], rounded once more       if there is one
    y    = f(gate) up of gate and up in y              of a gated GEMM (`models.inputs.Gated`)

No operation is fused, so that the kernels' outputs are the same bits. With 16-bit activations
(W4A16, W8A16) the weights are dequantized to float32 and multiplied, and so are both operands in float
formats (fp8_e4m3, mxfp4, nvfp4), whose sums are not exact anywhere.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from qspec import numerics
from qspec.catalog import GATE, INTEGER, PAIR, ActivationKernel, GemmKernel
from qspec.errors import InputError
from qspec.formats import NUMBER_FORMATS, Clip, Granularity, TensorFormat
from qspec.kernels.packing import PackedLinear, pack, stored_scales, unpack, unpacked_scales
from qspec.models.inputs import Gated, LayerInput, plus, source_of, value_of
from qspec.transforms import InputTransform

EXACT = 2**24  # float32 holds every integer up to here


@dataclass(frozen=True)
class PreparedInput:
    """A linear's input after the activation quantization kernel, shared by every linear that prepares it alike.

    values: codes int8 [M, K], 4-bit floats in pairs uint8 [M, K/2] (`kernels.packing`), or floats where activations
    stay in 16 bits.
    scale: float32 [groups, M], of 4-bit floats uint8, or None. zero: int8 [groups, M] or None. unit: of nvfp4,
    float32 [M].
    shape, dtype: of the input, so that the output gets the same.
    """

    values: Tensor
    scale: Tensor | None
    zero: Tensor | None
    shape: torch.Size
    dtype: torch.dtype
    unit: Tensor | None = None


@dataclass(frozen=True)
class ReferenceWeight:
    """A packed weight made ready for float32 GEMMs, once.

    values: float32 [N, K]: q - z, or the dequantized weights where GEMMs are not of integers.
    scale: float32 [groups, N], which these still want; ones where they want none.
    """

    kernel: GemmKernel
    values: Tensor
    scale: Tensor
    bias: Tensor | None

    @classmethod
    def of(cls, packed: PackedLinear) -> ReferenceWeight:
        kernel = packed.kernels.gemm
        zero = packed.unpacked_zeros()
        scale = packed.unpacked_scales()
        ones = torch.ones_like(scale)
        applied, left = (ones, scale) if _exact(kernel) else (scale, ones)
        codes, number = packed.unpacked_codes(), kernel.format
        values = numerics.dequantize(codes, applied.T, None if zero is None else zero.T, number)
        return cls(kernel, values, left, packed.bias)


def activation_format(row: ActivationKernel) -> TensorFormat:
    """The activation quantization kernel's quantization as the definition in `qspec.numerics` takes it."""
    granularity = Granularity("token") if row.group is None else Granularity("group", row.group)
    return TensorFormat(row.format, granularity, row.symmetric, Clip("ratio", row.clip))


def check_source(row: ActivationKernel | None, given: LayerInput) -> None:
    """Raises InputError where the kernel computes a linear's input of something else than is given."""
    source = source_of(given)
    if row is not None and row.source not in ("plain", source):
        raise InputError(
            f"{row.name} computes {row.source} of its inputs; it was given {source} ones",
            hint="run the whole block, or give the linear what its kernel reads (qspec.models.inputs)",
        )


def prepare(row: ActivationKernel | None, transform: InputTransform | None, given: LayerInput) -> PreparedInput:
    """The input x [..., K] that `given` is or stands for, transformed and quantized as `row` says.

    Raises NumericsError on NaN and Inf, InputError where kernel and input do not fit each other.
    """
    check_source(row, given)
    x = value_of(given)
    rows = x.reshape(-1, x.shape[-1])
    if row is None:
        return PreparedInput(rows, None, None, x.shape, x.dtype)
    if transform is not None:
        rows = transform.apply(rows)
    if row.bits == 16:
        return PreparedInput(rows.to(x.dtype), None, None, x.shape, x.dtype)
    quantized = numerics.quantize_activations(rows, activation_format(row))
    zero = None if quantized.zero is None else quantized.zero.T.contiguous()
    scale, unit = stored_scales(quantized)
    codes = pack(quantized.codes, row.bits, PAIR) if row.pairs else quantized.codes
    return PreparedInput(codes, scale, zero, x.shape, x.dtype, unit)


def multiply(weight: ReferenceWeight, prepared: PreparedInput, residual: Tensor | None = None) -> Tensor:
    """Y [..., N] in the input's dtype, by the formula of this module's docstring; residual: [..., N] in that dtype.

    Of a gated kernel Y is [..., N/2], without a residual.
    """
    assert residual is None or not weight.kernel.gated
    if prepared.scale is not None and _exact(weight.kernel):
        y = _integer(weight, prepared.values, prepared.scale, prepared.zero)
    else:
        y = _floats(weight.kernel, prepared) @ weight.values.T
    if weight.bias is not None:
        y += weight.bias
    y = y.to(prepared.dtype)
    if weight.kernel.gated:
        gate, up = y.reshape(y.shape[0], y.shape[1] // (2 * GATE), 2, GATE).unbind(2)
        y = Gated(gate.flatten(1), up.flatten(1), weight.kernel.activation).value()
    return plus(residual, y.reshape(*prepared.shape[:-1], y.shape[1]))


def rows_of(prepared: PreparedInput, rows: Tensor) -> PreparedInput:
    """Some rows of a prepared input [M, K], by their numbers."""
    scale, zero = (None if part is None else part[:, rows] for part in (prepared.scale, prepared.zero))
    unit = None if prepared.unit is None else prepared.unit[rows]
    values = prepared.values[rows]
    return PreparedInput(values, scale, zero, torch.Size((len(rows), prepared.shape[-1])), prepared.dtype, unit)


def _exact(kernel: GemmKernel) -> bool:
    """Whether its GEMMs are of integers."""
    return kernel.number == INTEGER and kernel.activation_bits != 16


def _floats(kernel: GemmKernel, prepared: PreparedInput) -> Tensor:
    """The input's numbers, float32 [M, K]."""
    if prepared.scale is None:
        return prepared.values.float()
    codes = unpack(prepared.values, kernel.activation_bits, PAIR) if kernel.pairs else prepared.values
    scale = unpacked_scales(prepared.scale, prepared.unit)
    return numerics.dequantize(codes, scale.T, None, kernel.format)


def _integer(weight: ReferenceWeight, codes: Tensor, scale: Tensor, zero: Tensor | None) -> Tensor:
    kernel, columns = weight.kernel, codes.shape[1]
    step = math.gcd(kernel.activation_group or columns, kernel.weight_group or columns)
    a = _centred(codes, zero)
    acc = torch.zeros(codes.shape[0], weight.values.shape[0], device=codes.device)
    for start in range(0, columns, step):
        part = slice(start, start + step)
        t = _exact_product(a[:, part], weight.values[:, part], _largest(kernel))
        if kernel.activation_group:
            t *= scale[start // kernel.activation_group].unsqueeze(1)
        if kernel.weight_group:
            t *= weight.scale[start // kernel.weight_group]
        acc += t
    if not kernel.activation_group:
        acc *= scale[0].unsqueeze(1)
    if not kernel.weight_group:
        acc *= weight.scale[0]
    return acc


def _centred(codes: Tensor, zero: Tensor | None) -> Tensor:
    """q - z as float32 [M, K]."""
    if zero is None:
        return codes.float()
    ones = torch.ones(zero.shape[::-1], device=codes.device)
    return numerics.dequantize(codes, ones, zero.T, NUMBER_FORMATS["int8"])


def _largest(kernel: GemmKernel) -> int:
    """The largest |(qA - zA)(qW - zW)|."""
    a_bits = kernel.activation_bits - int(kernel.activation_symmetric)
    w_bits = kernel.weight_bits - int(kernel.weight_symmetric)
    return 1 << (a_bits + w_bits)


def _exact_product(a: Tensor, w: Tensor, largest: int) -> Tensor:
    """a w^T of integers held in float32, each sum exact and then rounded once to float32.

    float32 sums are exact while they stay within 2^24; longer ones are cut and the pieces added in float64.
    """
    chunk = EXACT // largest
    if a.shape[1] <= chunk:
        return a @ w.T
    total = torch.zeros(a.shape[0], w.shape[0], dtype=torch.float64, device=a.device)
    for start in range(0, a.shape[1], chunk):
        total += a[:, start : start + chunk] @ w[:, start : start + chunk].T
    return total.float()
