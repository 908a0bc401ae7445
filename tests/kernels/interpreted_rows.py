"""Single device functions of activation quantization under Triton's interpreter, against numpy.

Run by `test_interpreted.py`. The interpreter rounds a fused multiplication twice, so that quotients here are no ties.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
import triton
import triton.language as tl

from tests.kernels.devices import device_module

CodeFormat = device_module("row_operands").CodeFormat
channels_of_places = device_module("row_operands").channels_of_places
abs_max = device_module("row_statistics").abs_max
lowest = device_module("row_statistics").lowest
highest = device_module("row_statistics").highest
sum_of_squares = device_module("row_statistics").sum_of_squares
symmetric_scale = device_module("row_scales").symmetric_scale
asymmetric_scale = device_module("row_scales").asymmetric_scale
nvfp4_unit = device_module("row_scales").nvfp4_unit
to_e4m3 = device_module("row_scales").to_e4m3
encode = device_module("encode").encode
lift_of = device_module("rotation").lift_of
load_rotation = device_module("rotation").load_rotation
rotate = device_module("rotation").rotate
reorder = device_module("rotation").reorder

ROWS, K = 8, 64
E2M1 = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]  # OCP MX 1.0, table 5


@triton.jit
def measure(y, found, ROWS: tl.constexpr, K: tl.constexpr):
    row = tl.arange(0, ROWS)
    values = tl.load(y + row[:, None] * K + tl.arange(0, K)[None, :])
    tl.store(found + row, abs_max(values, 1))
    tl.store(found + ROWS + row, lowest(values, 1))
    tl.store(found + 2 * ROWS + row, highest(values, 1))
    tl.store(found + 3 * ROWS + row, sum_of_squares(values))


@triton.jit
def scale(peaks, found, NUMBER: tl.constexpr, REACH: tl.constexpr, CLIP: tl.constexpr):
    at = tl.arange(0, 8)
    form = CodeFormat(NUMBER, True, 0.0, 0.0, REACH, CLIP, 0, 1)
    if NUMBER == "nvfp4":
        tl.store(found + at, nvfp4_unit(tl.load(peaks + at), form))
    else:
        tl.store(found + at, symmetric_scale(tl.load(peaks + at), form))


@triton.jit
def scale_and_zero(low, high, s, z, CLIP: tl.constexpr):
    at = tl.arange(0, 8)
    form = CodeFormat("int", False, -8.0, 7.0, 7.0, CLIP, 0, 1)
    scales, zeros = asymmetric_scale(tl.load(low + at), tl.load(high + at), form)
    tl.store(s + at, scales)
    tl.store(z + at, zeros)


@triton.jit
def e4m3_patterns(v, out, COUNT: tl.constexpr):
    at = tl.arange(0, COUNT)
    tl.store(out + at, to_e4m3(tl.load(v + at)))


@triton.jit
def encode_values(y, out, s, z, LONG: tl.constexpr, NUMBER: tl.constexpr, COUNT: tl.constexpr):
    at = tl.arange(0, COUNT)
    form = CodeFormat(NUMBER, z is None, -8.0, 7.0, 7.0, 0.5, 0, 1)
    tl.store(out + at, encode(tl.load(y + at), s, z, LONG, form).to(tl.int8))


@triton.jit
def rotate_rows(y, rotation, out, ROWS: tl.constexpr, K: tl.constexpr, BLOCK: tl.constexpr, FINE: tl.constexpr):
    cells = tl.arange(0, ROWS)[:, None] * K + tl.arange(0, K)[None, :]
    r = load_rotation(rotation, 0, BLOCK, BLOCK, BLOCK)
    tl.store(out + cells, rotate(tl.load(y + cells), r, FINE))


@triton.jit
def padded_rotation(rotation, out, BLOCK: tl.constexpr, WIDTH: tl.constexpr):
    i, j = tl.arange(0, 16)[:, None], tl.arange(0, WIDTH)[None, :]
    tl.store(out + i * WIDTH + j, load_rotation(rotation, 16, BLOCK, 16, WIDTH))


@triton.jit
def reorder_rows(y, source, real, out, ROWS: tl.constexpr, K: tl.constexpr, PLACES: tl.constexpr):
    row, place = tl.arange(0, ROWS)[:, None], tl.arange(0, PLACES)
    values = tl.load(y + row * K + tl.arange(0, K)[None, :])
    moved = reorder(values, tl.load(source + place), tl.load(real + place) != 0)
    tl.store(out + row * PLACES + place[None, :], moved)


@triton.jit
def lifts(peaks, out):
    at = tl.arange(0, 8)
    tl.store(out + at, lift_of(tl.load(peaks + at)))


@triton.jit
def channels(channel, real, LENGTH: tl.constexpr, SIZE: tl.constexpr, HELD: tl.constexpr, K: tl.constexpr):
    found, exists = channels_of_places(LENGTH, SIZE, HELD, K)
    tl.store(channel + tl.arange(0, LENGTH), found)
    tl.store(real + tl.arange(0, LENGTH), exists.to(tl.int32))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_statistics_of_rows(dtype: torch.dtype) -> None:
    y = torch.randn(ROWS, K, generator=torch.Generator().manual_seed(0)).to(dtype)
    y[1] = y[1].abs()  # nothing below 0
    y[2] = -y[2].abs()
    y[3, 5] = torch.nan
    found = torch.full((4, ROWS), 77.0)
    measure[(1,)](y.float() if dtype == torch.float32 else y, found, ROWS, K)
    values = y.double().numpy()
    whole = np.arange(ROWS) != 3
    assert np.array_equal(found[0].numpy()[whole], np.abs(values).max(axis=1)[whole])
    assert np.array_equal(found[1].numpy()[whole], np.minimum(values.min(axis=1), 0)[whole])
    assert np.array_equal(found[2].numpy()[whole], np.maximum(values.max(axis=1), 0)[whole])
    assert found[0, 3].isnan()
    assert found[2, 3].isinf()
    if dtype == torch.float32:
        np.testing.assert_allclose(found[3].numpy()[whole], (values**2).sum(axis=1)[whole], rtol=1e-6)


def test_scales_of_codes_are_the_reach_of_the_peak() -> None:
    peaks = torch.tensor([0.0, 7.0, 1.0, 1e-36, 14.0, 3.5, float("nan"), 448.0])
    found = torch.full((8,), 77.0)
    scale[(1,)](peaks, found, "int", 7.0, 1.0)
    expected = [1.0, 1.0, np.float32(1) / np.float32(7), 2.0**-100, 2.0, 0.5, np.nan, 64.0]
    np.testing.assert_array_equal(found.numpy(), np.array(expected, np.float32))
    scale[(1,)](peaks, found, "int", 7.0, 0.5)
    assert found[4].item() == 1.0


def test_scales_of_mxfp4_are_the_power_of_two_above() -> None:
    peaks = torch.tensor([0.0, 7.0, 6.9, 13.9, 14.0, 3.5, float("nan"), 1.75])
    found = torch.full((8,), 77.0)
    scale[(1,)](peaks, found, "mxfp4", 7.0, 1.0)
    np.testing.assert_array_equal(found.numpy(), [2.0**-100, 2.0, 1.0, 2.0, 4.0, 1.0, np.nan, 0.5])


def test_units_of_nvfp4() -> None:
    """2^(floor(log2 t) - 7) of peaks 6 t, t rounded to four significant bits: 1.9375 to 2, 1.9 to 1.875."""
    t = [1.0, 1.9375, 1.9, 2.0, 448.0, 0.5, np.nan, 3.0]
    found = torch.full((8,), 77.0)
    scale[(1,)](torch.tensor(t) * 6, found, "nvfp4", 6.0, 1.0)
    np.testing.assert_array_equal(found.numpy(), [2.0**-7, 2.0**-6, 2.0**-7, 2.0**-6, 2.0, 2.0**-8, np.nan, 2.0**-6])


def test_scales_and_zero_points() -> None:
    low = torch.tensor([0.0, -15.0, -8.0, 0.0, -30.0, 0.0, -5.0, -1.0])
    high = torch.tensor([0.0, 0.0, 7.0, 15.0, 0.0, 30.0, 10.0, 14.0])
    s, z = torch.full((8,), 77.0), torch.full((8,), 77.0)
    scale_and_zero[(1,)](low, high, s, z, 1.0)
    assert s.tolist() == [1.0, 1.0, 1.0, 1.0, 2.0, 2.0, 1.0, 1.0]
    assert z.tolist() == [-8.0, 7.0, 0.0, -8.0, 7.0, -8.0, -3.0, -7.0]
    scale_and_zero[(1,)](low, high, s, z, 0.5)
    assert s.tolist() == [1.0, 0.5, 0.5, 0.5, 1.0, 1.0, 0.5, 0.5]


def test_e4m3_rounds_to_the_nearest_even_pattern() -> None:
    every = torch.arange(127, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    between = (every[1:] + every[:-1]) / 2
    v = torch.cat([every, between, between * 1.001, between * 0.999])
    v = torch.cat([v, torch.zeros(512 - len(v))])
    out = torch.full((512,), -1, dtype=torch.int32)
    e4m3_patterns[(1,)](v, out, 512)
    assert torch.equal(out.to(torch.uint8), v.to(torch.float8_e4m3fn).view(torch.uint8))


@pytest.mark.parametrize("long", [True, False])
@pytest.mark.parametrize("zero", [None, 3.0])
def test_codes_are_rounded_quotients_within_the_range(zero: float | None, long: bool) -> None:
    generator = np.random.default_rng(5)
    v = generator.integers(-12, 12, 256) + generator.uniform(-0.45, 0.45, 256)
    y = (v * 0.375).astype(np.float32)
    out = torch.full((256,), 99, dtype=torch.int8)
    encode_values[(1,)](torch.from_numpy(y), out, 0.375, zero, long, "int", 256)
    expected = np.clip(np.rint(y.astype(np.float64) / 0.375) + (zero or 0), -8, 7)
    assert np.array_equal(out.numpy(), expected)


def test_codes_of_four_bit_floats_are_the_nearest_patterns() -> None:
    middles = [(a + b) / 2 for a, b in pairwise(E2M1)]
    even = [0.0, 1.0, 1.0, 2.0, 2.0, 4.0, 4.0]  # of two neighbours that with an even pattern
    values = [*E2M1, *middles, 7.0, 100.0]
    expected = [*E2M1, *even, 6.0, 6.0]
    y = torch.tensor([sign * v for v in values for sign in (1, -1)])
    y = torch.cat([y, torch.zeros(64 - len(y))])
    out = torch.full((64,), 99, dtype=torch.int8)
    encode_values[(1,)](y, out, 1.0, None, True, "mxfp4", 64)
    codes = out.numpy().astype(int)
    for index, wanted in enumerate(expected):
        assert E2M1[codes[2 * index] & 7] == E2M1[codes[2 * index + 1] & 7] == wanted
        assert codes[2 * index] < 8 <= codes[2 * index + 1]


@pytest.mark.parametrize(("fine", "limit"), [(False, 2e-3), (True, 2e-6)])
def test_blocks_of_rows_are_rotated(fine: bool, limit: float) -> None:
    generator = np.random.default_rng(6)
    y = generator.normal(0, 1, (ROWS, K)).astype(np.float32)
    r = generator.normal(0, 1, (16, 16)).astype(np.float16)
    out = torch.full((ROWS, K), torch.nan)
    rotate_rows[(1,)](torch.from_numpy(y), torch.from_numpy(r), out, ROWS, K, 16, fine)
    expected = (y.astype(np.float64).reshape(ROWS, K // 16, 16) @ r.astype(np.float64)).reshape(ROWS, K)
    assert np.abs(out.numpy() - expected).max() < limit * np.abs(expected).max()


def test_a_rotation_is_zero_beyond_its_block() -> None:
    r = torch.randn(20, 20, generator=torch.Generator().manual_seed(1)).half()
    out = torch.full((16, 32), 77.0, dtype=torch.float16)
    padded_rotation[(1,)](r, out, 20, 32)
    expected = torch.zeros(16, 32, dtype=torch.float16)
    expected[:4, :20] = r[16:]
    assert torch.equal(out, expected)


def test_rows_are_reordered() -> None:
    generator = np.random.default_rng(7)
    y = generator.normal(0, 1, (ROWS, K)).astype(np.float32)
    source, real = generator.integers(0, K, 128).astype(np.int32), generator.integers(0, 2, 128).astype(np.int32)
    out = torch.full((ROWS, 128), torch.nan)
    reorder_rows[(1,)](*map(torch.from_numpy, (y, source, real)), out, ROWS, K, 128)
    assert np.array_equal(out.numpy(), np.where(real, y[:, source], 0))


def test_lifts_bring_peaks_to_two_to_the_eleventh() -> None:
    peaks = torch.tensor([1.0, 1.5, 2.0, 1000.0, 65504.0, 2.0**-60, 3.0e38, 5.0])
    out = torch.full((8,), torch.nan)
    lifts[(1,)](peaks, out)
    lifted = peaks.double() * out.double()
    assert ((lifted >= 2**11) & (lifted < 2**12)).all()
    assert (torch.log2(out.double()) % 1 == 0).all()


def test_channels_of_units_with_gaps() -> None:
    channel, real = torch.full((16,), -1, dtype=torch.int32), torch.full((16,), -1, dtype=torch.int32)
    channels[(1,)](channel, real, 16, 3, 4, 9)
    assert real.tolist() == [1, 1, 1, 0] * 3 + [0] * 4
    assert channel[real == 1].tolist() == list(range(9))
    channels[(1,)](channel, real, 16, 1, 1, 9)
    assert real.tolist() == [1] * 9 + [0] * 7
    assert channel.tolist() == list(range(16))
