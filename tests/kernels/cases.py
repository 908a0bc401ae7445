"""Random packed linears in every format that has kernels, and independent computations of their results."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib import metadata
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from torch import Tensor

from qspec import numerics
from qspec.catalog import Activation, ActivationKernel, GemmKernel, kernels_for
from qspec.formats import NUMBER_FORMATS, Clip, Granularity, NumberFormat, Scheme, TensorFormat
from qspec.kernels.experts import QuantExperts
from qspec.kernels.packing import PackedLinear
from qspec.kernels.reference import PreparedInput
from qspec.models.inputs import Gated, LayerInput, Normed
from qspec.transforms import InputTransform

TRITON = metadata.version("triton") if find_spec("triton") else ""  # other tests of these cases need none
SECOND_ROWS = pytest.mark.skipif(TRITON.startswith("3.8."), reason="Triton 3.8 has no views of a part of shared memory")


@dataclass(frozen=True)
class Format:
    """A pair of operands; group None is per channel or per token, activation bits 16 is floating."""

    w_bits: int = 4
    w_group: int | None = None
    w_symmetric: bool = True
    a_bits: int = 4
    a_group: int | None = None
    a_symmetric: bool = True
    clip: float = 1.0
    number: str = "int"

    def scheme(self) -> Scheme:
        weights = TensorFormat(self._number(self.w_bits), _granularity("channel", self.w_group), self.w_symmetric)
        if self.a_bits == 16:
            return Scheme("test", weights)
        clip = Clip("ratio", self.clip)
        granularity = _granularity("token", self.a_group)
        activations = TensorFormat(self._number(self.a_bits), granularity, self.a_symmetric, clip)
        return Scheme("test", weights, activations)

    def gemm(self) -> GemmKernel:
        weights = (self.w_bits, self.w_group, self.w_symmetric)
        return GemmKernel(*weights, self.a_bits, self.a_group, self.a_symmetric, self.number)

    def _number(self, bits: int) -> NumberFormat:
        return NUMBER_FORMATS[f"int{bits}" if self.number == "int" else self.number]

    def __str__(self) -> str:
        return self.gemm().name.removeprefix("gemm_")


INTEGER = (
    Format(),
    Format(w_symmetric=False, a_symmetric=False),
    Format(w_group=128),
    Format(w_group=128, w_symmetric=False, a_group=128, a_symmetric=False),
    Format(w_group=256, a_bits=8, a_group=64),
    Format(w_group=64, w_symmetric=False, a_bits=8, a_group=128, a_symmetric=False),
    Format(w_group=32, w_symmetric=False, a_bits=8, a_group=32),
    Format(w_bits=8, a_bits=8),
    Format(w_bits=8, w_symmetric=False, a_bits=8, a_symmetric=False),
    Format(w_bits=8, w_group=128, a_bits=8, a_group=256),
    Format(w_bits=8, w_group=64, w_symmetric=False, a_bits=8, a_group=32, a_symmetric=False),
    Format(w_symmetric=False, a_bits=8, a_symmetric=False, clip=0.9),
    Format(w_bits=2, a_bits=8),
    Format(w_bits=2, w_group=64, w_symmetric=False),
    Format(w_bits=3, w_group=128, a_bits=8),
    Format(w_bits=3, w_group=48, w_symmetric=False, a_bits=8, a_group=64, a_symmetric=False),  # in steps of 16
    Format(w_group=24, a_bits=8),
    Format(w_group=192, w_symmetric=False, a_symmetric=False),
    Format(w_bits=5, w_symmetric=False, a_bits=8, a_symmetric=False),
    Format(w_bits=6, w_group=192, a_group=96),
    Format(w_bits=7, w_group=24, w_symmetric=False, a_symmetric=False),
    Format(w_bits=7, a_group=448),
    Format(w_bits=8, w_group=48, w_symmetric=False, a_bits=8, a_group=60),  # in steps of 12
)
WEIGHT_ONLY = (
    Format(a_bits=16),
    Format(w_group=128, a_bits=16),
    Format(w_group=128, w_symmetric=False, a_bits=16),
    Format(w_group=64, w_symmetric=False, a_bits=16),
    Format(w_group=32, a_bits=16),
    Format(w_bits=8, w_symmetric=False, a_bits=16),
    Format(w_bits=8, w_group=256, a_bits=16),
    Format(w_bits=2, w_group=64, w_symmetric=False, a_bits=16),
    Format(w_bits=3, w_group=128, w_symmetric=False, a_bits=16),
    Format(w_bits=3, w_group=64, w_symmetric=False, a_bits=16),
    Format(w_bits=3, a_bits=16),
    Format(w_group=448, w_symmetric=False, a_bits=16),
    Format(w_bits=5, w_group=24, a_bits=16),
    Format(w_bits=6, w_symmetric=False, a_bits=16),
    Format(w_bits=7, w_group=96, w_symmetric=False, a_bits=16),
    Format(w_bits=8, w_group=48, a_bits=16),
)


FLOATS = (
    Format(8, None, True, 8, number="fp8_e4m3"),
    Format(8, None, True, 8, clip=0.9, number="fp8_e4m3"),
    Format(4, 32, True, 4, 32, number="mxfp4"),
    Format(4, 16, True, 4, 16, number="nvfp4"),
)
FLOAT_WEIGHTS = (
    Format(8, a_bits=16, number="fp8_e4m3"),
    Format(4, 32, a_bits=16, number="mxfp4"),
    Format(4, 16, a_bits=16, number="nvfp4"),
)


def _granularity(whole: str, group: int | None) -> Granularity:
    return Granularity(whole) if group is None else Granularity("group", group)


def random_linear(
    fmt: Format,
    rows: int,
    columns: int,
    seed: int,
    bias: bool = True,
    transform: InputTransform | None = None,
    device: str = "cpu",
) -> PackedLinear:
    """Weights with outliers and an offset, so that clamping, zero points and both signs occur.

    None is below 2^-9: alone in its group, in 8 bits, its scale would be too small for float16.
    """
    generator = torch.Generator(device).manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator, device=device) + 0.3
    weight[:, :: max(1, columns // 7)] *= 5
    weight[weight.abs() < 2**-9] = 2**-9
    quantized = numerics.quantize_weight(weight, fmt.scheme().weights)
    b = torch.randn(rows, generator=generator, device=device) if bias else None
    kernels = kernels_for(fmt.scheme(), () if transform is None else transform.blocks)
    return PackedLinear.from_quantized(quantized, kernels, b, transform)


def random_gates(
    fmt: Format,
    channels: int,
    columns: int,
    seed: int,
    bias: bool = True,
    device: str = "cpu",
    activation: Activation = "silu",
) -> tuple[PackedLinear, PackedLinear]:
    """Gate and up as one product that gives f(gate) up, and as one that gives both, gate first."""
    parts = [random_linear(fmt, channels, columns, 2 * seed + i, bias, device=device) for i in range(2)]
    gated = [replace(part, kernels=part.kernels.gated(activation)) for part in parts]
    return PackedLinear.merged(gated), PackedLinear.merged(parts)


def random_experts(
    fmt: Format, count: int, width: int, inner: int, seed: int, bias: bool = True, device: str = "cpu"
) -> tuple[list[tuple[PackedLinear, PackedLinear]], list[PackedLinear]]:
    """Gate and up [inner, width], and down [width, inner], of each expert."""
    shapes = ((inner, width), (inner, width), (width, inner))
    gates, ups, downs = (
        [random_linear(fmt, *shape, 1000 * seed + 3 * expert + part, bias, device=device) for expert in range(count)]
        for part, shape in enumerate(shapes)
    )
    return list(zip(gates, ups, strict=True)), downs


def mixture_of(
    pairs: list[tuple[PackedLinear, PackedLinear]], downs: list[PackedLinear], activation: Activation = "silu"
) -> QuantExperts:
    """The experts of `random_experts` as one module."""
    gated = [[replace(one, kernels=one.kernels.gated(activation)) for one in pair] for pair in pairs]
    return QuantExperts([PackedLinear.merged(pair) for pair in gated], downs)


def random_choice(tokens: int, experts: int, chosen: int, seed: int, device: str = "cpu") -> tuple[Tensor, Tensor]:
    """Experts int64 [tokens, chosen], of which the last never is, and weights float32 that do not add up to 1."""
    generator = torch.Generator(device).manual_seed(seed + 2000)
    scores = torch.rand(tokens, experts, generator=generator, device=device)
    scores[:, -1] = -1
    return scores.topk(chosen).indices, torch.rand(tokens, chosen, generator=generator, device=device)


def random_input(rows: int, columns: int, seed: int, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Tensor:
    """Rows of very different sizes, a row of zeros, channels with outliers; float16 stays in range."""
    generator = torch.Generator(device).manual_seed(seed + 1000)
    x = torch.randn(rows, columns, generator=generator, device=device) - 0.2
    x[:, 3::37] *= 20
    largest = 0 if dtype == torch.float16 else 2
    x *= torch.logspace(-3, largest, rows, device=device).unsqueeze(1)
    if rows > 2:
        x[1] = 0
    return x.to(dtype)


def random_given(
    source: str, rows: int, columns: int, seed: int, dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> LayerInput:
    """What a row kernel of this source reads. A norm's gain has outliers; gate and up are parts of one matrix."""
    if source == "plain":
        return random_input(rows, columns, seed, dtype, device)
    generator = torch.Generator(device).manual_seed(seed + 3000)
    if source == "rmsnorm":
        gain = torch.randn(columns, generator=generator, device=device) + 1
        gain[:: max(1, columns // 3)] *= 10
        return Normed(random_input(rows, columns, seed, dtype, device), gain, 1e-5)
    both = torch.randn(rows, 2 * columns, generator=generator, device=device) * 3
    both[:, 5::61] *= 4
    both = both.to(dtype)
    return Gated(both[:, :columns], both[:, columns:], "silu" if source == "silu_mul" else "gelu_tanh")


def to_cpu(given: LayerInput) -> LayerInput:
    if isinstance(given, torch.Tensor):
        return given.cpu()
    return replace(given, **{k: v.cpu() for k, v in vars(given).items() if isinstance(v, torch.Tensor)})


def exact_input(given: LayerInput) -> Tensor:
    """The linear's input in float64, by the formulas, without the roundings between them."""
    if isinstance(given, Normed):
        x = given.x.double()
        return given.gain.double() * x / (x.square().mean(-1, keepdim=True) + given.eps).sqrt()
    if isinstance(given, Gated):
        gate = given.x.double()
        inner = 2 * math.sqrt(2 / math.pi) * (gate + 0.044715 * gate**3)
        return gate / (1 + (-(gate if given.activation == "silu" else inner)).exp()) * given.up.double()
    return given.double()


def scale_tolerance(row: ActivationKernel, dtype: torch.dtype) -> float:
    """Of a scale after rotations: between two of them 4-bit rows of 16-bit floats keep 11 bits, else 22.

    The last bit of a mean square, which depends on the order of its sum, moves values of a norm that is rounded to 16
    bits at ties; a row of 123 of `random_given` has 42 at once, and they move its scale by 5e-5.
    """
    if dtype != torch.float32 and len(row.rotations) == 2 and row.bits == 4:
        return 2e-3
    return 1e-4 if dtype != torch.float32 and row.rotations and row.source == "rmsnorm" else 1e-5


def random_transform(blocks: tuple[int, ...], columns: int, seed: int) -> InputTransform | None:
    """Rotations in blocks of these sizes, two of them with a permutation between them; None for none."""
    if not blocks:
        return None
    generator = torch.Generator().manual_seed(seed + 2000)
    rotations = [torch.linalg.qr(torch.randn(block, block, generator=generator)).Q.half() for block in blocks]
    if len(blocks) == 1:
        return InputTransform(tuple(rotations))
    return InputTransform(tuple(rotations), torch.randperm(columns, generator=generator).to(torch.int32))


def expected_product(packed: PackedLinear, prepared: PreparedInput) -> np.ndarray:
    """The formula of the reference's docstring in int64 and float32, from unpacked codes."""
    kernel = packed.kernels.gemm
    qa, qw = prepared.values.numpy().astype(np.int64), packed.unpacked_codes().numpy().astype(np.int64)
    columns = qa.shape[1]
    a_size, w_size = kernel.activation_group or columns, kernel.weight_group or columns
    sa, sw = prepared.scale.numpy(), packed.scale.numpy().astype(np.float32)
    za, zw = _offsets(prepared.zero, sa), _offsets(packed.unpacked_zeros(), sw)
    step = math.gcd(a_size, w_size)
    y = np.zeros((qa.shape[0], qw.shape[0]), np.float32)
    for start in range(0, columns, step):
        a = qa[:, start : start + step] - za[start // a_size][:, None]
        w = qw[:, start : start + step] - zw[start // w_size][:, None]
        t = (a @ w.T).astype(np.float32)
        if kernel.activation_group:
            t = t * sa[start // a_size][:, None]
        if kernel.weight_group:
            t = t * sw[start // w_size]
        y = y + t
    if not kernel.activation_group:
        y = y * sa[0][:, None]
    if not kernel.weight_group:
        y = y * sw[0]
    return y if packed.bias is None else y + packed.bias.numpy()


def _offsets(zero: Tensor | None, scale: np.ndarray) -> np.ndarray:
    return np.zeros(scale.shape, np.int64) if zero is None else zero.numpy().astype(np.int64)


def dequantized(packed: PackedLinear) -> Tensor:
    """W in float64 [N, K], where it is: each weight s (q - z)."""
    if packed.kernels.gemm.number != "int":
        codes = packed.codes.cpu().numpy()
        scale = packed.scale.T.cpu().numpy()
        unit = None if packed.unit is None else packed.unit.cpu().numpy()
        return torch.from_numpy(numbers(codes, scale, unit, packed.kernels.gemm.number)).to(packed.codes.device)
    scale = packed.scale.T.double()
    zeros = packed.unpacked_zeros()
    size = packed.in_features // scale.shape[1]
    offset = torch.zeros_like(scale) if zeros is None else zeros.T.double()
    return (packed.unpacked_codes().double() - offset.repeat_interleave(size, 1)) * scale.repeat_interleave(size, 1)


def dequantized_product(packed: PackedLinear, x: Tensor) -> Tensor:
    """x W^T + b in float64."""
    y = x.double() @ dequantized(packed).T
    return y if packed.bias is None else y + packed.bias.double()


def rounded_weights(packed: PackedLinear, dtype: torch.dtype) -> Tensor:
    """W [N, K] by THE definition, rounded once."""
    zeros = packed.unpacked_zeros()
    zero = None if zeros is None else zeros.T
    scale, number = packed.unpacked_scales().T, packed.kernels.gemm.format
    return numerics.dequantize(packed.unpacked_codes(), scale, zero, number).to(dtype)


E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])  # OCP MX 1.0, table 5


def e4m3(patterns: np.ndarray) -> np.ndarray:
    """float64 of patterns uint8, by the statement of OCP OFP8: sign, 4 bits of exponent (bias 7), 3 of mantissa."""
    p = patterns.astype(np.int64)
    exponent, mantissa = p >> 3 & 15, p & 7
    size = np.where(exponent == 0, mantissa * 2.0**-9, (8 + mantissa) * 2.0 ** (exponent - 10.0))
    size = np.where(p & 127 == 127, np.nan, size)
    return np.where(p & 128, -size, size)


def numbers(codes: np.ndarray, scale: np.ndarray, unit: np.ndarray | None, number: str) -> np.ndarray:
    """What codes of a float format stand for, float64 [rows, K], from the bytes as they are stored."""
    if number == "fp8_e4m3":
        return e4m3(codes.view(np.uint8)) * scale.astype(np.float64)
    pairs = codes.view(np.uint8)
    values = E2M1[np.stack([pairs & 15, pairs >> 4], axis=-1).reshape(pairs.shape[0], -1)]
    size = (
        e4m3(scale) * unit.astype(np.float64)[:, None] if unit is not None else 2.0 ** (scale.astype(np.float64) - 127)
    )
    return values * np.repeat(size, values.shape[1] // size.shape[1], axis=1)


def transformed(transform: InputTransform, x: Tensor) -> Tensor:
    """T(x) in float64, by whole matrices."""
    first, *second = (
        torch.block_diag(*[rotation.double()] * (x.shape[1] // rotation.shape[0])) for rotation in transform.rotations
    )
    y = x.double() @ first
    if transform.permutation is None:
        return y
    moved = torch.stack([y[:, int(p)] for p in transform.permutation], dim=1)
    return moved @ second[0]


def codes_that_differ(found: PreparedInput, expected: PreparedInput) -> float:
    """Share of codes, counted from their zero points, that are not equal; a difference of more than one fails.

    A zero point at a tie moves with all codes of its group: q - z, the rounded quotient, stays where it is.
    """
    assert found.values.dtype == expected.values.dtype
    difference = (rounded_quotients(found) - rounded_quotients(expected)).abs()
    assert int(difference.max()) <= 1
    return float((difference > 0).double().mean())


def rounded_quotients(prepared: PreparedInput) -> Tensor:
    """q - z in float64, [M, K]."""
    codes = prepared.values.double().cpu()
    if prepared.zero is None:
        return codes
    zero = prepared.zero.T.double().cpu()
    return codes - zero.repeat_interleave(codes.shape[1] // zero.shape[1], 1)


def dequantized_input(prepared: PreparedInput, number: str = "int") -> Tensor:
    """s (q - z) in float64."""
    assert prepared.scale is not None
    if number != "int":
        unit = None if prepared.unit is None else prepared.unit.cpu().numpy()
        scale = prepared.scale.T.cpu().numpy()
        return torch.from_numpy(numbers(prepared.values.cpu().numpy(), scale, unit, number))
    scale = prepared.scale.T.double().cpu()
    return rounded_quotients(prepared) * scale.repeat_interleave(prepared.values.shape[1] // scale.shape[1], 1)


def relative_error(found: Tensor, expected: Tensor | np.ndarray) -> float:
    """||found - expected|| / ||expected|| in float64; infinite if anything is NaN."""
    exact = torch.as_tensor(expected).double().cpu()
    error = float((found.double().cpu() - exact).norm() / exact.norm())
    return error if error == error else float("inf")


@contextmanager
def poisoned_memory() -> Iterator[None]:
    """Fresh tensors hold NaN or the largest integer, so that an element which a kernel leaves out shows."""
    deterministic = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(deterministic)


ROWS = (
    *(
        ActivationKernel(rotations, bits, group, symmetric, clip)
        for rotations in ((), (32,), (64, 64))
        for bits, group, symmetric, clip in (
            (4, None, True, 1.0),
            (8, None, False, 0.9),
            (4, 128, False, 1.0),
            (8, 32, True, 0.95),
            (4, 64, True, 1.0),
        )
    ),
    ActivationKernel((), 8, 48, False, 1.0),
    ActivationKernel((), 4, 1, False, 1.0),
    ActivationKernel((), 4, 1200, True, 1.0),  # three tiles, the last masked
    ActivationKernel((), 8, 2048, False, 1.0),
    ActivationKernel((32,), 8, 48, True, 1.0),  # neither divides the other
    ActivationKernel((64, 12), 4, None, True, 0.9),
    ActivationKernel((32, 12), 8, 24, False, 1.0),
    ActivationKernel((32, 8), 8, 64, False, 1.0),  # a group is several blocks
    ActivationKernel((32, 12), 4, 64, True, 1.0),  # a group cuts a block
)


def widths(fmt: Format) -> list[int]:
    """Input widths that the groups divide, where these are powers of two with every pack block and with tails."""
    unit = math.lcm(fmt.w_group or 1, fmt.a_group or 1, 32)
    return [unit * times for times in ((1, 3, 6, 7) if unit & (unit - 1) == 0 else (1, 1, 1, 2))]


def largest_codes(fmt: Format, columns: int) -> tuple[PackedLinear, PreparedInput]:
    """One 8-bit row times one channel: every code 127, zero points -128 where there are any, scales 1."""
    packed = random_linear(fmt, 1, columns, seed=0, bias=False)
    zero = None if fmt.w_symmetric else torch.full_like(packed.zero, -128)
    ones = torch.ones(1, 1)
    codes = torch.full((1, columns), 127, dtype=torch.int8)
    packed = PackedLinear(packed.kernels, 1, columns, codes, ones, zero, None, None)
    a_zero = None if fmt.a_symmetric else torch.full((1, 1), -128, dtype=torch.int8)
    return packed, PreparedInput(codes, ones, a_zero, codes.shape, torch.float32)
