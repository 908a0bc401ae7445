"""The one definition of the numbers, against values worked out by hand and bounds that must always hold."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qspec import numerics
from qspec.errors import NumericsError
from qspec.formats import NUMBER_FORMATS, Clip, Granularity, TensorFormat

INTEGERS = [f"int{bits}" for bits in range(2, 9)]


def fmt(name: str = "int4", group: int | None = None, symmetric: bool = True, clip: Clip | None = None) -> TensorFormat:
    granularity = Granularity("group", group) if group else Granularity("channel")
    return TensorFormat(NUMBER_FORMATS[name], granularity, symmetric, clip or Clip())


def test_symmetric_by_hand() -> None:
    # s = 7.4927 / (7.5 - 7.5 / 1024) = 1; halves go to even: 0.5 -> 0, 1.5 -> 2, -2.5 -> -2
    w = torch.tensor([[7.5 * 1023 / 1024, 0.5, 1.5, -2.5], [-7.5 * 1023 / 1024, 7.0, 7.4, 0.0]])
    q = numerics.quantize_weight(w, fmt())
    assert q.scale.tolist() == [[1.0], [1.0]]
    assert q.codes.tolist() == [[7, 0, 2, -2], [-7, 7, 7, 0]]


@pytest.mark.parametrize(("bits", "reach"), [(2, 1.5), (3, 3.5), (4, 7.5), (5, 15.5), (6, 31), (7, 63), (8, 127)])
def test_low_bits_reach_half_a_step_further(bits: int, reach: float) -> None:
    """Up to 5 bits a range ends a thousandth before half a step more than qmax; GPTQ's code: 2 max / (2^bits - 1)."""
    reach = reach * 1023 / 1024 if bits <= 5 else reach
    x = torch.tensor([[-reach, reach, 1.0, 0.0]])
    for q in (numerics.quantize_weight(x, fmt(f"int{bits}")), numerics.quantize_activations(x, fmt(f"int{bits}"))):
        assert q.scale.tolist() == [[1.0]]
        highest = 2 ** (bits - 1) - 1
        assert q.codes.tolist() == [[-highest, highest, 1, 0]]


@settings(max_examples=100, deadline=None)
@given(name=st.sampled_from(INTEGERS), group=st.sampled_from([None, 8]), seed=st.integers(0, 10**6))
def test_opposite_values_have_opposite_codes(name: str, group: int | None, seed: int) -> None:
    """The ends of a range too, whatever rounding to float16 does to the scale: what cancels still does."""
    w = torch.randn(8, 16, generator=torch.Generator().manual_seed(seed))
    one, other = (numerics.quantize_weight(x, fmt(name, group)) for x in (w, -w))
    assert torch.equal(one.codes, -other.codes)
    assert torch.equal(one.scale, other.scale)


def test_clipped_values_use_the_lowest_code() -> None:
    # s = 0.5 * 15 / 7.4927: -15 / s is -14.99, cut to -8
    q = numerics.quantize_weight(torch.tensor([[15.0, -15.0]]), fmt(clip=Clip("ratio", 0.5)))
    assert q.codes.tolist() == [[7, -8]]


def test_clip_ratio_by_hand() -> None:
    # s = 0.5 * 15 / 7.4927 = 1.001: 15 is cut to 7, -15 to -8
    q = numerics.quantize_weight(torch.tensor([[15.0, -15.0, 3.0, 0.0]]), fmt(clip=Clip("ratio", 0.5)))
    assert q.codes.tolist() == [[7, -8, 3, 0]]


def test_asymmetric_by_hand() -> None:
    # range 0..30 over 15 steps: s = 2, z = -8, so that 0 -> code -8 and 30 -> code 7
    q = numerics.quantize_weight(torch.tensor([[0.0, 30.0, 4.0, 7.0]]), fmt(symmetric=False))
    assert (q.scale.item(), q.zero.item()) == (2.0, -8)  # type: ignore[union-attr]
    assert q.codes.tolist() == [[-8, 7, -6, -4]]
    assert q.dequantize().tolist() == [[0.0, 30.0, 4.0, 8.0]]


def test_asymmetric_range_always_holds_zero() -> None:
    q = numerics.quantize_weight(torch.tensor([[10.0, 12.0, 15.0, 11.0]]), fmt(symmetric=False))
    assert q.scale.item() == 1.0


def test_group_scales_round_before_codes() -> None:
    # the float16 scale of 1000.3 / 7.4927 = 133.504 is 133.5; the code is computed from that: half of it is 66.75
    w = torch.tensor([[1000.3, 66.749, 66.751, 0]])
    q = numerics.quantize_weight(w, fmt(group=4))
    assert q.scale.dtype == torch.float16
    assert q.scale.item() == float(np.float16(np.float32(1000.3) / np.float32(7.5 * 1023 / 1024)))
    assert q.codes.tolist() == [[7, 0, 1, 0]]


def test_zeros_have_scale_one() -> None:
    for group in (None, 2):
        q = numerics.quantize_weight(torch.zeros(2, 4), fmt(group=group))
        assert (q.scale == 1).all()
        assert (q.dequantize() == 0).all()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_stop(value: float) -> None:
    with pytest.raises(NumericsError):
        numerics.quantize_weight(torch.tensor([[1.0, value]]), fmt())


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(INTEGERS),
    symmetric=st.booleans(),
    group=st.sampled_from([None, 4, 8]),
    seed=st.integers(0, 10**6),
    scale=st.sampled_from([1.0, 10.0, 1e3]),  # of much smaller weights, float16 scales of groups are subnormal
)
def test_codes_stay_in_range_and_errors_within_half_a_step(
    name: str, symmetric: bool, group: int | None, seed: int, scale: float
) -> None:
    w = scale * torch.randn(3, 16, generator=torch.Generator().manual_seed(seed))
    q = numerics.quantize_weight(w, fmt(name, group, symmetric))
    number = NUMBER_FORMATS[name]
    assert int(q.codes.min()) >= number.qmin
    assert int(q.codes.max()) <= number.qmax
    step = q.scale.float().repeat_interleave(16 // q.scale.shape[1], 1)
    # half a step; the zero point's own rounding and a float16 scale can cost the ends of the range another half
    slack = 0.502 if symmetric and group is None else 1.01
    assert ((w - q.dequantize()).abs() <= slack * step).all()


def test_searched_clip_is_never_worse_on_its_objective() -> None:
    w = torch.randn(16, 64, generator=torch.Generator().manual_seed(0))
    w[:, 0] *= 6

    def loss(clip: Clip) -> torch.Tensor:
        error = numerics.quantize_weight(w, fmt(group=32, clip=clip)).dequantize() - w
        return error.abs().pow(2.4).reshape(16, 2, 32).sum(-1)

    searched = loss(Clip("mse"))
    assert (searched <= loss(Clip()) + 1e-6).all()
    ratios = [1 - step / 100 for step in range(81)]
    brute = torch.stack([loss(Clip("ratio", r)) for r in ratios]).amin(0)
    torch.testing.assert_close(searched, brute, rtol=1e-4, atol=1e-6)


def test_bits_by_hand() -> None:
    assert fmt(group=128).stored_bits(10, 256) / 2560 == 4.125
    assert fmt(group=128, symmetric=False).stored_bits(10, 256) / 2560 == 4.15625
    assert fmt().stored_bits(10, 256) == 10 * (256 * 4 + 32)
    assert fmt("int8").stored_bits(1, 64) == 64 * 8 + 32


E2M1 = (0, 0.5, 1, 1.5, 2, 3, 4, 6)  # OCP MX 1.0, table 5


def e4m3_numbers() -> list[float]:
    """Every number of e4m3 from 0 up, by the statement of OCP OFP8."""
    below = [m * 2.0**-9 for m in range(8)]
    return below + [(8 + m) * 2.0 ** (e - 10) for e in range(1, 16) for m in range(8) if (e, m) != (15, 7)]


def nearest(value: float, table: list[float]) -> float:
    """To even: of two as near, the one at an even place, whose last bit is 0."""
    size = min(abs(value), table[-1])
    gaps = [abs(size - entry) for entry in table]
    best = [i for i, gap in enumerate(gaps) if gap == min(gaps)]
    return math.copysign(table[min(best, key=lambda i: i % 2)], value)


@pytest.mark.parametrize(("name", "table"), [("mxfp4", list(E2M1)), ("fp8_e4m3", e4m3_numbers())])
def test_floats_are_the_nearest_of_their_format(name: str, table: list[float]) -> None:
    """Every number, every middle between two, and just beside it; beyond the largest there is the largest."""
    middles = [(a + b) / 2 for a, b in itertools.pairwise(table)]
    values = [*table, *middles, *(m * 1.001 for m in middles), *(m * 0.999 for m in middles), table[-1] * 1.7]
    x = torch.tensor([[*values, *(-v for v in values)]])
    codes = numerics.encode(x, torch.ones(1, 1), None, NUMBER_FORMATS[name])
    expected = [nearest(v, table) for v in x[0].tolist()]
    assert numerics.decode(codes, NUMBER_FORMATS[name])[0].tolist() == expected


def test_fp8_by_hand() -> None:
    # s = 896 / 448 = 2; 100 / 2 = 50 is the middle of 48 and 52, 1.100 and 1.101 times 32: the even one is 48
    q = numerics.quantize_weight(torch.tensor([[896.0, 100.0, -3.0, 0.0]]), fmt("fp8_e4m3"))
    assert q.scale.tolist() == [[2.0]]
    assert q.dequantize().tolist() == [[896.0, 96.0, -3.0, 0.0]]
    assert q.codes.view(torch.uint8).tolist() == [[0x7E, 0x64, 0xBC, 0]]


def test_mxfp4_by_hand() -> None:
    # 27.5 / 4 < 7: s = 4; 27.5 / 4 = 6.875 is cut to 6, 10 / 4 = 2.5 and -1 / 4 are middles, as is 3 / 4
    w = torch.zeros(1, 64)
    w[0, :4] = torch.tensor([27.5, 10.0, -1.0, 3.0])
    w[0, 32] = 0.75  # 0.75 / 2^-3 = 6 < 7
    q = numerics.quantize_weight(w, fmt("mxfp4", 32))
    assert q.scale.tolist() == [[4.0, 0.125]]
    assert q.codes[0, :4].tolist() == [7, 4, -8, 2]
    assert q.dequantize()[0, :4].tolist() == [24.0, 8.0, 0.0, 4.0]
    assert q.dequantize()[0, 32] == 0.75
    stored, unit = numerics.pack_scales(q.scale, q.format.number)
    assert (stored.tolist(), unit) == ([[129, 124]], None)


@pytest.mark.parametrize(("peak", "scale"), [(1.75, 0.5), (1.7499999, 0.25), (7.0, 2.0), (6.9999995, 1.0), (4.0, 1.0)])
def test_scales_of_mxfp4_round_up_from_seven_quarters(peak: float, scale: float) -> None:
    """As compressed-tensors: the exponent goes up where the mantissa is 1.75 or more; MX 1.0 alone would take floor."""
    w = torch.zeros(1, 32)
    w[0, 3] = -peak
    assert numerics.quantize_weight(w, fmt("mxfp4", 32)).scale.tolist() == [[scale]]
    assert numerics.quantize_activations(w, fmt("mxfp4", 32)).scale.tolist() == [[scale]]


def test_nvfp4_by_hand() -> None:
    # t = 1344 / 6 = 224 has four bits (14 * 16): u = 2^(7 - 7) = 1, b = 224, s = 224; the second block: 3 / 6 = 0.5
    w = torch.zeros(1, 48)
    w[0, 0], w[0, 1] = 1344.0, 700.0  # 700 / 224 = 3.125: 3
    w[0, 16], w[0, 17] = -3.0, 0.8  # 0.8 / 0.5 = 1.6: 1.5
    q = numerics.quantize_weight(w, fmt("nvfp4", 16))
    assert q.scale.tolist() == [[224.0, 0.5, 2.0**-9]]
    assert q.dequantize()[0, [0, 1, 16, 17]].tolist() == [1344.0, 672.0, -3.0, 0.75]
    stored, unit = numerics.pack_scales(q.scale, q.format.number)
    assert unit is not None
    assert unit.tolist() == [1.0]
    assert stored.tolist() == [[0x76, 0x30, 0x01]]  # 224 = 14 * 2^4, 0.5 = 8 * 2^-4, the smallest


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(["mxfp4", "nvfp4"]),
    seed=st.integers(0, 10**6),
    size=st.sampled_from([1e-20, 1e-6, 1.0, 1e20]),
    clip=st.sampled_from([1.0, 0.8]),
)
def test_scales_of_blocks_survive_their_bytes_and_bound_the_error(
    name: str, seed: int, size: float, clip: float
) -> None:
    number = NUMBER_FORMATS[name]
    generator = torch.Generator().manual_seed(seed)
    spread = torch.logspace(0, -3, 5).repeat_interleave(32)  # blocks of very different sizes in a row
    w = torch.randn(7, 160, generator=generator) * spread * size
    q = numerics.quantize_weight(w, fmt(name, number.block, clip=Clip("ratio", clip)))
    stored, unit = numerics.pack_scales(q.scale, number)
    assert stored.dtype == torch.uint8
    assert torch.equal(numerics.unpack_scales(stored, unit), q.scale)
    # within the range a value is off by half the widest step, 2 s between 4 s and 6 s
    s = q.scale.repeat_interleave(number.block, 1)
    inside = w.abs() <= 6 * s
    assert ((w - q.dequantize()).abs() <= s)[inside].all()
    if clip == 1.0:  # what rounding s leaves beyond: a third, or a sixteenth
        assert (w.abs() <= s * (7 if name == "mxfp4" else 6.4)).all()


@pytest.mark.parametrize("name", ["mxfp4", "nvfp4"])
def test_zeros_in_blocks_stay_zeros(name: str) -> None:
    q = numerics.quantize_weight(torch.zeros(2, 64), fmt(name, NUMBER_FORMATS[name].block))
    assert (q.dequantize() == 0).all()
    stored, unit = numerics.pack_scales(q.scale, q.format.number)
    assert torch.equal(numerics.unpack_scales(stored, unit), q.scale)


@pytest.mark.parametrize("name", ["fp8_e4m3", "mxfp4", "nvfp4"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_floats_that_are_not_finite_stop(name: str, value: float) -> None:
    w = torch.ones(2, 32)
    w[1, 3] = value
    with pytest.raises(NumericsError):
        numerics.quantize_weight(w, fmt(name, NUMBER_FORMATS[name].block or None))


EVERY = [(name, group) for name in INTEGERS for group in (None, 32)]
EVERY += [("uint3", 32), ("uint4", 32), ("fp8_e4m3", None), ("mxfp4", 32), ("nvfp4", 16)]


def any_format(name: str, group: int | None, symmetric: bool, clip: Clip | None = None) -> TensorFormat:
    return fmt(name, group, symmetric and not name.startswith("uint"), clip)


@settings(max_examples=200, deadline=None)
@given(
    chosen=st.sampled_from(EVERY),
    symmetric=st.booleans(),
    clip=st.sampled_from([Clip(), Clip("ratio", 0.9), Clip("mse")]),
    seed=st.integers(0, 10**6),
    exponent=st.integers(-6, 8),  # below, the float16 scales of int8 groups are subnormal: they have fewer digits
)
def test_powers_of_two_leave_codes_unchanged(
    chosen: tuple[str, int | None], symmetric: bool, clip: Clip, seed: int, exponent: int
) -> None:
    """Of a weight's rows and of tokens; and of input channels that share a scale, where scales are float16 or e8m0.

    nvfp4 counts a block's scale in three bits of a mantissa and a smallest exponent, so its rows are scaled as wholes.
    """
    name, group = chosen
    symmetric = symmetric or NUMBER_FORMATS[name].kind == "float"
    chosen_format = any_format(name, group, symmetric, clip)
    generator = torch.Generator().manual_seed(seed)
    w = torch.randn(4, 64, generator=generator)
    factor = 2.0 ** (exponent + torch.arange(4)[:, None])
    if group and name != "nvfp4":
        factor = factor * 2.0 ** torch.arange(64 // group).repeat_interleave(group)
    plain, scaled = (numerics.quantize_weight(x, chosen_format) for x in (w, w * factor))
    assert torch.equal(plain.codes, scaled.codes)
    assert torch.equal(plain.dequantize() * factor, scaled.dequantize())
    if clip.kind != "mse" and not name.startswith("uint"):
        plain, scaled = (numerics.quantize_activations(x, chosen_format) for x in (w, w * factor))
        assert torch.equal(plain.codes, scaled.codes)
        assert torch.equal(plain.dequantize() * factor, scaled.dequantize())


@settings(max_examples=100, deadline=None)
@given(chosen=st.sampled_from(EVERY), symmetric=st.booleans(), seed=st.integers(0, 10**6))
def test_permuted_channels_have_permuted_codes(chosen: tuple[str, int | None], symmetric: bool, seed: int) -> None:
    """Channels within a group, and whole groups; rows as well."""
    name, group = chosen
    chosen_format = any_format(name, group, symmetric or NUMBER_FORMATS[name].kind == "float")
    generator = torch.Generator().manual_seed(seed)
    w = torch.randn(4, 64, generator=generator)
    size = group or 64
    places = torch.arange(64).reshape(-1, size)[torch.randperm(64 // size, generator=generator)]
    places = torch.cat([own[torch.randperm(size, generator=generator)] for own in places])
    rows = torch.randperm(4, generator=generator)
    codes = numerics.quantize_weight(w, chosen_format).codes
    assert torch.equal(numerics.quantize_weight(w[rows][:, places], chosen_format).codes, codes[rows][:, places])


def test_scales_that_float16_does_not_hold_are_an_error() -> None:
    """Half of the weights are 2^-30 of the others: no scale of 1, no codes of 0 in their place."""
    w = torch.ones(2, 8)
    w[1, 4:] = 2.0**-30
    numerics.quantize_weight(w, fmt("int4"))
    with pytest.raises(NumericsError) as error:
        numerics.quantize_weight(w, fmt(group=4), where="blocks[3].mlp.down")
    assert error.value.where == "blocks[3].mlp.down"
    assert "from 9.3e-10 to 1.0e+00" in error.value.what
    assert "per channel" in str(error.value.hint)
    with pytest.raises(NumericsError, match=r"float16.*1\.0e\+06"):
        numerics.quantize_weight(torch.full((1, 4), 1e6), fmt(group=4, clip=Clip("mse")))


def test_a_group_that_no_sum_shows_is_rounded_to_the_least_scale() -> None:
    """2^-40 of the largest scale: less than a float32 sum holds of it. Its codes are 0, its scale is not 1."""
    w = torch.ones(1, 8)
    w[0, 4:] = 2.0**-40
    q = numerics.quantize_weight(w, fmt(group=4))
    assert q.scale.tolist()[0][1] == 2.0**-19
    assert q.codes.tolist() == [[7, 7, 7, 7, 0, 0, 0, 0]]


@pytest.mark.parametrize("name", ["int4", "int8"])
def test_the_smallest_activations_have_the_smallest_scale(name: str) -> None:
    """What is below half of 2^-100 is 0, what is above has a code: a scale below that would not be the kernels'."""
    x = torch.tensor([[2.0**-99, -(2.0**-100), 2.0**-102, 0.0], [0.0, 0.0, 0.0, 0.0]])
    q = numerics.quantize_activations(x, fmt(name))
    assert q.scale.tolist() == [[2.0**-100], [1.0]]
    assert q.codes.tolist() == [[2, -1, 0, 0], [0, 0, 0, 0]]


def test_the_exponent_that_fits_by_hand() -> None:
    grouped, channels = fmt(group=4), fmt()
    ones = 7.5 * 1023 / 1024 * torch.ones(1, 4)  # a scale of 1
    assert numerics.fitting_exponent([(ones, grouped)]) == 0
    assert numerics.fitting_exponent([(ones * 2.0**-14, grouped)]) == 0
    assert numerics.fitting_exponent([(ones * 2.0**-15, grouped)]) == 15  # float16 holds six bits of 2^-19, 2^4 away
    assert numerics.fitting_exponent([(ones * 2.0**-20, grouped)]) == 20
    assert numerics.fitting_exponent([(ones * 2.0**20, grouped)]) == -20
    assert numerics.fitting_exponent([(ones * 2.0**-20, channels)]) == 0
    assert numerics.fitting_exponent([(ones * 2.0**-20, grouped), (ones * 2.0**14, grouped)]) == 1  # 2^16 is Inf
    assert numerics.fitting_exponent([(ones * 2.0**-20, grouped), (ones * 2.0**16, grouped)]) == 0  # none does
    assert numerics.fitting_exponent([(torch.zeros(1, 4), grouped)]) == 0
