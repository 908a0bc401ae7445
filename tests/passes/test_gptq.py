"""GPTQ against a naive float64 derivation and against round-to-nearest on its own objective."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import pytest
import torch
from torch import Tensor

from qspec import numerics
from qspec.errors import NumericsError
from qspec.formats import NUMBER_FORMATS, Clip, Granularity, TensorFormat
from qspec.passes.block import Block
from qspec.passes.gptq import prepare, round_columns
from qspec.passes.parameters import Gptq
from tests.passes.conftest import scheme

INT4 = TensorFormat(NUMBER_FORMATS["int4"], Granularity("channel"))
GROUPED = TensorFormat(NUMBER_FORMATS["int3"], Granularity("group", 8), symmetric=False, clip=Clip("mse"))


def correlated(rows: int, columns: int, seed: int) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(rows, columns, generator=g) @ torch.randn(columns, columns, generator=g)


def quantized(
    w: Tensor, x: Tensor, fmt: TensorFormat, order: str = "activation", damp: float = 0.01, block: int = 128
) -> numerics.Quantized:
    """GPTQ of W [out, in] for inputs X [n, in]."""
    elimination = prepare(2 * x.T @ x / len(x), order, damp, "test")
    scale, zero = numerics.weight_scales(w, fmt)
    return numerics.Quantized(round_columns(w, scale, zero, fmt, elimination, block), scale, zero, fmt)


def naive(w: Tensor, h: Tensor, fmt: TensorFormat, order: list[int], damp: float) -> Tensor:
    """Optimal brain quantization, one column at a time, with an explicit inverse that shrinks: float64 throughout.

    After column j is fixed, the rest moves by -e H^-1[j, rest] / H^-1[j, j] and j leaves the inverse
    (arXiv 2210.17323, eq. 2-3).
    """
    scale, zero = numerics.weight_scales(w, fmt)
    group = fmt.group(w.shape[1])
    w, h = w.double().clone(), h.double().clone()
    h += damp * h.diagonal().mean() * torch.eye(h.shape[0], dtype=torch.float64)
    inverse = torch.linalg.inv(h)
    out = torch.zeros_like(w)
    remaining = list(order)
    for j in order:
        s = scale[:, j // group].double()
        z = 0 if zero is None else zero[:, j // group].double()
        q = ((w[:, j] / s).round() + z).clamp(fmt.number.qmin, fmt.number.qmax)
        out[:, j] = s * (q - z)
        error = (w[:, j] - out[:, j]) / inverse[j, j]
        remaining.remove(j)
        for k in remaining:
            w[:, k] -= error * inverse[j, k]
        inverse = inverse - torch.outer(inverse[:, j], inverse[j]) / inverse[j, j]
    return out


@pytest.mark.parametrize(("fmt", "order"), list(product((INT4, GROUPED), ("natural", "activation"))))
def test_equals_the_naive_column_loop(fmt: TensorFormat, order: str) -> None:
    x = correlated(200, 32, 1)
    w = torch.randn(12, 32, generator=torch.Generator().manual_seed(2))
    h = 2 * x.T @ x / len(x)
    columns = prepare(h, order, 0.01, "test").order
    expected_order = list(range(32)) if order == "natural" else h.diagonal().argsort(descending=True).tolist()
    assert columns.tolist() == expected_order
    ours = quantized(w, x, fmt, order, block=7).dequantize()
    theirs = naive(w, h, fmt, expected_order, 0.01)
    assert (ours - theirs).abs().max() < 1e-6


@pytest.mark.parametrize("order", ["natural", "activation"])
@pytest.mark.parametrize("seed", range(6))
def test_error_lies_between_the_exhaustive_optimum_and_rounding(seed: int, order: str) -> None:
    """All 8^5 codes of a row of five int3 weights are tried; the scale is what rounding has."""
    x = correlated(60, 5, seed)
    w = torch.randn(24, 5, generator=torch.Generator().manual_seed(seed + 50))
    fmt = TensorFormat(NUMBER_FORMATS["int3"], Granularity("channel"))
    found = quantized(w, x, fmt, order, damp=1e-6)
    h = (x.T @ x).double()

    def error(restored: Tensor) -> Tensor:
        d = w[:, None, :].double() - restored.double()
        return torch.einsum("rci,ij,rcj->rc", d, h, d)

    codes = torch.tensor(list(product(range(-4, 4), repeat=5)))
    optimum = error(codes[None] * found.scale[:, :, None]).min(1).values
    ours = error(found.dequantize()[:, None])[:, 0]
    plain = error(numerics.quantize_weight(w, fmt).dequantize()[:, None])[:, 0]
    assert bool((ours >= optimum * (1 - 1e-9)).all())
    assert float(optimum.sum()) < float(ours.sum()) < float(plain.sum())


def test_uncorrelated_inputs_leave_rounding_as_it_is() -> None:
    """With a diagonal H nothing is spread: rounding is the optimum."""
    x = torch.diag(torch.tensor([3.0, 1.0, 0.2, 7.0, 2.0, 1.5, 0.7, 4.0]))
    w = torch.randn(6, 8, generator=torch.Generator().manual_seed(5))
    assert torch.equal(quantized(w, x, INT4).codes, numerics.quantize_weight(w, INT4).codes)


@pytest.mark.parametrize("seed", range(5))
def test_beats_rounding_on_the_inputs(seed: int) -> None:
    x = correlated(300, 64, seed)
    w = torch.randn(20, 64, generator=torch.Generator().manual_seed(seed + 100))
    ours = quantized(w, x, INT4).dequantize()
    rounded = numerics.quantize_weight(w, INT4).dequantize()
    assert (x @ (w - ours).T).norm() < 0.8 * (x @ (w - rounded).T).norm()


def test_two_columns_reach_the_optimum() -> None:
    """With two columns and the first fixed, the second is the best integer there is: try all of them."""
    x = correlated(50, 2, 3)
    w = torch.tensor([[0.37, -0.81], [0.9, 0.13]])
    found = quantized(w, x, INT4, "natural", damp=1e-9)
    for row in range(2):
        s, first = float(found.scale[row, 0]), float(found.codes[row, 0])
        errors = {}
        for code in range(-8, 8):
            errors[code] = float((x @ (w[row] - s * torch.tensor([first, code]))).norm())
        assert min(errors, key=lambda c: errors[c]) == int(found.codes[row, 1])


def test_dead_channels_are_rounded_alone() -> None:
    x = correlated(100, 8, 4)
    x[:, 3] = 0
    w = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
    found = quantized(w, x, INT4)
    torch.testing.assert_close(found.codes[:, 3], numerics.quantize_weight(w, INT4).codes[:, 3])


def test_a_hessian_that_is_not_finite_stops() -> None:
    with pytest.raises(NumericsError, match="singular or not finite"):
        prepare(torch.full((4, 4), float("nan")), "activation", 0.01, "blocks[0].mlp.input")


def test_later_sites_see_earlier_rounding(make_block: Callable[..., Block]) -> None:
    """The Hessian of o is taken after q, k and v were rounded."""
    block = make_block(scheme("int2", None))
    before = block.observed.hessian("attention.mixed", None)
    attention = tuple(linear for part, linear in block.linears.items() if part.startswith("attention"))
    Gptq().rewrite(block, attention[:3])
    after = block.observed.hessian("attention.mixed", None)
    assert (after - before).norm() / before.norm() > 0.01
