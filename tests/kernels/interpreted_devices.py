"""Single device functions under Triton's interpreter, against numpy; run by `test_interpreted.py`."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from torch.nn import functional

from tests.kernels.devices import device_module

Weights = device_module("operands").Weights
group_row = device_module("operands").group_row
load_codes = device_module("unpack").load_codes
decode_codes = device_module("unpack").decode_codes
from_e8m0 = device_module("unpack").from_e8m0
interleaved_channel = device_module("unpack").interleaved_channel
interleaved_place = device_module("unpack").interleaved_place
multiply_gated = device_module("gates").multiply_gated

no_tokens = device_module("attention").no_tokens
add_tokens = device_module("attention").add_tokens
merge = device_module("attention").merge

ROWS, CHANNELS = 16, 128
E2M1 = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]  # OCP MX 1.0, table 5


@triton.jit
def unpack_rows(packed, out, ROWS: tl.constexpr, K: tl.constexpr, BITS: tl.constexpr, PACK: tl.constexpr):
    row = tl.arange(0, ROWS)[:, None]
    channel = tl.arange(0, K)
    codes = load_codes(
        packed + row * (K // 8 * BITS),
        channel,
        row < ROWS,
        K,
        Weights(packed, None, None, None, "int", BITS, 0, PACK, False),
    )
    tl.store(out + row * K + channel[None, :], codes)


@triton.jit
def decode_all(codes, out, NUMBER: tl.constexpr):
    at = tl.arange(0, 256)
    tl.store(out + at, decode_codes(tl.load(codes + at), NUMBER))


@triton.jit
def e8m0_all(codes, out):
    at = tl.arange(0, 256)
    tl.store(out + at, from_e8m0(tl.load(codes + at)))


@triton.jit
def places(out, back):
    at = tl.arange(0, 64)
    tl.store(out + at, interleaved_channel(at))
    tl.store(back + at, interleaved_place(interleaved_channel(at)))


@triton.jit
def gate_values(gate, up, out, ACTIVATION: tl.constexpr):
    at = tl.arange(0, 256)
    tl.store(out + at, multiply_gated(tl.load(gate + at), tl.load(up + at), ACTIVATION))


@triton.jit
def step_rows(out, STEP: tl.constexpr, GROUP: tl.constexpr):
    for step in range(8):
        tl.store(out + step, group_row(step, STEP, GROUP, 100))


@triton.jit
def attend_in_parts(scores, values, out, T: tl.constexpr, BLOCK: tl.constexpr, WIDTH: tl.constexpr):
    """Softmax of scores [16, T] over blocks, the even ones and the odd ones by themselves, then both, times values."""
    row, channel = tl.arange(0, 16)[:, None], tl.arange(0, WIDTH)[None, :]
    even, odd = no_tokens(16, WIDTH), no_tokens(16, WIDTH)
    for block in tl.static_range(T // BLOCK):
        token = block * BLOCK + tl.arange(0, BLOCK)
        s = tl.load(scores + row * T + token[None, :])
        v = tl.load(values + token[:, None] * WIDTH + channel)
        if block % 2:
            odd = add_tokens(odd, s, v)
        else:
            even = add_tokens(even, s, v)
    whole = merge(merge(even, no_tokens(16, WIDTH)), odd)
    tl.store(out + row * WIDTH + channel, whole.sums / whole.denominator[:, None])


def packed_by_definition(codes: np.ndarray, bits: int, block: int) -> np.ndarray:
    """Bytes [rows, K bits / 8] of codes int [rows, K]: planes of 4, 2 and 1 bits, by the layout's definition."""
    rows, columns = codes.shape
    unsigned = codes & (2**bits - 1)
    planes, taken = [], 0
    for plane in (4, 2, 1):
        if not bits & plane:
            continue
        field = unsigned >> (bits - taken - plane) & (2**plane - 1)
        taken += plane
        span = block * plane // 8
        data = np.zeros((rows, columns * plane // 8), np.uint8)
        for channel in range(columns):
            i, j = channel % block // span, channel % block % span
            data[:, channel // block * span + j] |= (field[:, channel] << (plane * i)).astype(np.uint8)
        planes.append(data)
    return np.concatenate(planes, axis=1)


@pytest.mark.parametrize("block", [32, 64, 128])
@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 7])
def test_codes_come_out_of_their_planes_at_the_top_of_a_byte(bits: int, block: int) -> None:
    generator = np.random.default_rng(bits * block)
    codes = generator.integers(-(2 ** (bits - 1)), 2 ** (bits - 1), (ROWS, CHANNELS))
    packed = torch.from_numpy(packed_by_definition(codes, bits, block))
    out = torch.full((ROWS, CHANNELS), 77, dtype=torch.int8)
    unpack_rows[(1,)](packed, out, ROWS, CHANNELS, bits, block)
    assert np.array_equal(out.numpy(), (codes * 2 ** (8 - bits)).astype(np.int8))


def test_patterns_of_four_bit_floats_are_decoded() -> None:
    codes = torch.arange(256, dtype=torch.uint8).view(torch.int8)
    out = torch.full((256,), torch.nan)
    decode_all[(1,)](codes, out, "mxfp4")
    for byte in range(256):
        sign = -1.0 if byte & 0x80 else 1.0
        assert out[byte] == sign * E2M1[byte >> 4 & 7]


def test_patterns_of_eight_bit_floats_are_decoded() -> None:
    codes = torch.arange(256, dtype=torch.uint8).view(torch.int8)
    out = torch.full((256,), torch.nan)
    decode_all[(1,)](codes, out, "fp8_e4m3")
    for byte in range(256):
        exponent, mantissa = byte >> 3 & 15, byte & 7
        if (exponent, mantissa) == (15, 7):
            continue  # NaN has no code
        size = mantissa / 8 * 2.0**-6 if exponent == 0 else (1 + mantissa / 8) * 2.0 ** (exponent - 7)
        assert out[byte] == (-size if byte & 0x80 else size)


def test_patterns_of_scales_are_powers_of_two() -> None:
    codes = torch.arange(1, 255, dtype=torch.uint8)
    out = torch.full((256,), torch.nan)
    e8m0_all[(1,)](torch.nn.functional.pad(codes, (1, 1)), out)
    assert out[1:255].tolist() == [2.0 ** (code - 127) for code in range(1, 255)]


def test_interleaved_channels_are_those_of_the_definition() -> None:
    out, back = torch.zeros(64, dtype=torch.int32), torch.zeros(64, dtype=torch.int32)
    places[(1,)](out, back)
    expected = [
        16 * block + 8 * j + 2 * t + p for block in range(4) for t in range(4) for p in range(2) for j in range(2)
    ]
    assert out.tolist() == expected
    assert back.tolist() == list(range(64))


@pytest.mark.filterwarnings("ignore:overflow")  # of exp(-gate), by which f(gate) is 0
@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
def test_what_the_gate_passes_through_times_up(activation: str) -> None:
    """Each value to a few last bits of its own, in float64 without the cancellation of 1 + tanh; and those of torch,
    whose gelu has that in float32, to a few of the gate's."""
    generator = torch.Generator().manual_seed(0)
    gate, up = (4 * torch.randn(256, generator=generator) for _ in range(2))
    gate[:6], up[:6] = torch.tensor([0.0, -0.0, 3e38, -3e38, 1e-30, -9.9]), 0.7
    out = torch.full((256,), torch.nan)
    gate_values[(1,)](gate, up, out, activation)
    y = gate.double()
    inner = y if activation == "silu" else 2 * (2 / torch.pi) ** 0.5 * (y + 0.044715 * y**3)
    exact = y / (1 + torch.exp(-inner)) * up.double()
    assert bool(((out - exact).abs() <= 2e-5 * exact.abs() + 1e-36).all())
    near = gate.abs() < 3
    assert bool(((out - exact).abs() <= 1e-6 * exact.abs())[near].all())
    torchs = {"silu": functional.silu, "gelu_tanh": partial(functional.gelu, approximate="tanh")}[activation](gate) * up
    assert bool(((out - torchs).abs() <= 4e-7 * (gate * up).abs()).all())


def test_steps_share_the_scales_of_their_group() -> None:
    out = torch.full((8,), -1, dtype=torch.int32)
    step_rows[(1,)](out, 32, 0)
    assert out.tolist() == [0] * 8
    step_rows[(1,)](out, 32, 32)
    assert out.tolist() == [100 * step for step in range(8)]
    step_rows[(1,)](out, 32, 96)
    assert out.tolist() == [0, 0, 0, 100, 100, 100, 200, 200]


def test_softmax_over_parts_of_the_tokens_is_that_over_all() -> None:
    generator = np.random.default_rng(4)
    scores, values = generator.normal(0, 20, (16, 128)), generator.normal(0, 1, (128, 16)).astype(np.float16)
    scores[:, :32] = -np.inf  # a block in which no token counts
    scores = scores.astype(np.float32)
    out = torch.full((16, 16), torch.nan)
    attend_in_parts[(1,)](torch.from_numpy(scores), torch.from_numpy(values), out, 128, 32, 16)
    weights = np.exp2(scores.astype(np.float64) - scores.max(axis=1, keepdims=True))
    expected = weights @ values.astype(np.float64) / weights.sum(axis=1, keepdims=True)
    assert np.abs(out.numpy() - expected).max() < 2e-3  # weights are rounded to float16
