"""The one definition of the numbers, against values worked out by hand and bounds that must always hold."""

from __future__ import annotations

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
    # s = 7 / 7 = 1; halves go to even: 0.5 -> 0, 1.5 -> 2, -2.5 -> -2
    w = torch.tensor([[7.0, 0.5, 1.5, -2.5]])
    q = numerics.quantize_weight(w, fmt())
    assert q.scale.tolist() == [[1.0]]
    assert q.codes.tolist() == [[7, 0, 2, -2]]


def test_clip_ratio_by_hand() -> None:
    # s = 0.5 * 14 / 7 = 1: 14 is cut to 7, -14 to -8
    q = numerics.quantize_weight(torch.tensor([[14.0, -14.0, 3.0, 0.0]]), fmt(clip=Clip("ratio", 0.5)))
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
    # the float16 scale of 1000.3 / 7 = 142.9 is 142.875; the code is computed from that
    w = torch.tensor([[1000.3, 71.44, 0, 0]])
    q = numerics.quantize_weight(w, fmt(group=4))
    assert q.scale.dtype == torch.float16
    assert q.scale.item() == float(np.float16(np.float32(1000.3) / np.float32(7)))
    assert q.codes.tolist() == [[7, 1, 0, 0]]


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
