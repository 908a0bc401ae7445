"""The CPU path against the stated formula in int64, and against float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from qspec.catalog import ActivationKernel, LayerKernels
from qspec.errors import InputError, NumericsError
from qspec.kernels import reference
from qspec.kernels.reference import ReferenceWeight
from tests.kernels.cases import (
    INTEGER,
    WEIGHT_ONLY,
    Format,
    dequantized_input,
    dequantized_product,
    exact_input,
    expected_product,
    largest_codes,
    random_given,
    random_input,
    random_linear,
    random_transform,
    relative_error,
    transformed,
    widths,
)


@pytest.mark.parametrize("fmt", INTEGER, ids=str)
def test_integer_products_follow_the_formula(fmt: Format) -> None:
    wide = -(-5120 // widths(fmt)[0]) * widths(fmt)[0]
    for seed, columns in enumerate([*widths(fmt), wide]):
        packed = random_linear(fmt, 19, columns, seed)
        prepared = reference.prepare(packed.kernels.row, None, random_input(7, columns, seed))
        found = reference.multiply(ReferenceWeight.of(packed), prepared)
        assert np.array_equal(found.numpy(), expected_product(packed, prepared))
        exact = dequantized_product(packed, dequantized_input(prepared))
        assert relative_error(found, exact) < 1e-6


@pytest.mark.parametrize("symmetric", [True, False])
def test_the_largest_sums_are_exact(symmetric: bool) -> None:
    """Sums just below 2^31, at the widest K."""
    columns = 32768
    fmt = Format(w_bits=8, w_symmetric=symmetric, a_bits=8, a_symmetric=symmetric)
    packed, prepared = largest_codes(fmt, columns)
    difference = 127 if symmetric else 255
    y = reference.multiply(ReferenceWeight.of(packed), prepared)
    assert float(y[0, 0]) == float(np.float32(difference**2 * columns))


@pytest.mark.parametrize("fmt", WEIGHT_ONLY, ids=str)
def test_weight_only_products_are_near_float64(fmt: Format) -> None:
    for seed, columns in enumerate(widths(fmt)):
        packed = random_linear(fmt, 19, columns, seed)
        x = random_input(7, columns, seed)
        found = reference.multiply(ReferenceWeight.of(packed), reference.prepare(None, None, x))
        assert relative_error(found, dequantized_product(packed, x)) < 1e-6


@pytest.mark.parametrize("group", [None, 32])
@pytest.mark.parametrize("rotations", [(), (32,), (32, 32)])
def test_prepared_inputs_round_the_transformed_ones(rotations: tuple[int, ...], group: int | None) -> None:
    """|T(x) - s (q - z)| is at most half a step, and codes stay in range."""
    for bits, symmetric in ((4, True), (4, False), (8, True), (8, False)):
        row = ActivationKernel(rotations, bits, group, symmetric, 1.0)
        transform = random_transform(rotations, 96, seed=1)
        x = random_input(9, 96, 1)
        prepared = reference.prepare(row, transform, x)
        exact = x.double() if transform is None else transformed(transform, x)
        step = prepared.scale.T.double().repeat_interleave(96 // prepared.scale.shape[0], 1)
        error = (dequantized_input(prepared) - exact).abs() / step
        assert float(error.max()) < (0.5001 if symmetric else 1.0001)  # zero points are rounded too
        assert int(prepared.values.int().abs().max()) <= 2 ** (bits - 1)


def test_shapes_and_dtypes_come_back() -> None:
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        packed = random_linear(Format(), 5, 64, seed=0)
        x = random_input(6, 64, 0, dtype).reshape(2, 3, 64)
        y = reference.multiply(ReferenceWeight.of(packed), reference.prepare(packed.kernels.row, None, x))
        assert y.shape == (2, 3, 5)
        assert y.dtype == dtype


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_residual_meets_a_rounded_product(dtype: torch.dtype) -> None:
    packed = random_linear(Format(), 19, 96, seed=3)
    prepared = reference.prepare(packed.kernels.row, None, random_input(7, 96, 3, torch.bfloat16).to(dtype))
    residual = random_input(7, 19, 4, torch.bfloat16).to(dtype)
    y = torch.from_numpy(expected_product(packed, prepared)).to(dtype)
    found = reference.multiply(ReferenceWeight.of(packed), prepared, residual)
    assert found.dtype == dtype
    assert torch.equal(found, (y.float() + residual.float()).to(dtype))


def test_a_transform_alone_keeps_the_dtype() -> None:
    transform = random_transform((32,), 64, seed=0)
    fmt = Format(a_bits=16)
    packed = random_linear(fmt, 5, 64, seed=0, transform=transform)
    assert isinstance(packed.kernels, LayerKernels)
    assert packed.kernels.row == ActivationKernel((32,), 16, None, True, 1.0)
    x = random_input(4, 64, 0, torch.bfloat16)
    prepared = reference.prepare(packed.kernels.row, transform, x)
    assert prepared.values.dtype == torch.bfloat16
    assert transform is not None
    assert relative_error(prepared.values, transformed(transform, x)) < 1e-2


@pytest.mark.parametrize("source", ["rmsnorm", "silu_mul", "gelu_tanh_mul"])
def test_inputs_are_computed_of_what_is_given(source: str) -> None:
    """Against the formulas in float64; rows of their own scale, so that nothing but rounding is left."""
    given = random_given(source, 7, 96, 1)
    prepared = reference.prepare(ActivationKernel((), 8, None, True, 1.0, source=source), None, given)
    exact = exact_input(given)
    step = prepared.scale.T.double()
    assert float(((dequantized_input(prepared) - exact).abs() / step).max()) < 0.5001
    with pytest.raises(InputError, match=f"computes {source}"):
        reference.prepare(ActivationKernel((), 8, None, True, 1.0, source=source), None, exact.float())


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_values_that_are_not_finite_stop(bad: float) -> None:
    x = random_input(4, 64, 0)
    x[2, 3] = bad
    with pytest.raises(NumericsError):
        reference.prepare(ActivationKernel((), 8, None, True, 1.0), None, x)
