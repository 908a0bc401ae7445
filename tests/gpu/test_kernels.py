"""The generated kernels on a CUDA GPU, at LLaDA-8B's shapes, against the CPU reference and float64.

python -m pytest tests/gpu -m gpu
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from qspec.catalog import ActivationKernel
from qspec.errors import InputError
from qspec.kernels import reference
from qspec.kernels.generate import KernelLibrary
from qspec.kernels.linear import QuantLinear
from qspec.kernels.reference import ReferenceWeight
from tests.gpu.on_gpu import (
    check_integer_product,
    check_plain_rows,
    check_rotated_rows,
    expected_transform,
    moved,
    multiplied_on_gpu,
    prepared_on_gpu,
)
from tests.kernels.cases import (
    Format,
    dequantized,
    largest_codes,
    random_input,
    random_linear,
    random_transform,
    relative_error,
    transformed,
)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]

triton, tl = pytest.importorskip("triton"), pytest.importorskip("triton.language")
SHAPES = ((12288, 4096), (4096, 12288), (4096, 4096))  # output and input channels of LLaDA-8B's linears
TOKENS = (1, 5, 64, 1024)
INTEGER = (
    Format(),
    Format(w_group=128),
    Format(w_group=128, w_symmetric=False, a_group=128, a_symmetric=False),
    Format(w_group=64, w_symmetric=False, a_bits=8, a_group=128, a_symmetric=False),
    Format(w_bits=8, a_bits=8),
    Format(w_bits=8, w_symmetric=False, a_bits=8, a_symmetric=False),
    Format(w_bits=8, w_group=128, a_bits=8, a_group=256),
)
WEIGHT_ONLY = (
    Format(a_bits=16),
    Format(w_group=128, a_bits=16),
    Format(w_group=128, w_symmetric=False, a_bits=16),
    Format(w_group=32, a_bits=16),
    Format(w_bits=8, a_bits=16),
)
PLAIN_ROWS = (
    ActivationKernel((), 4, None, True, 0.9),
    ActivationKernel((), 8, None, False, 1.0),
    ActivationKernel((), 8, 128, True, 1.0),
    ActivationKernel((), 4, 64, False, 0.95),
)
ROTATED_ROWS = (
    ActivationKernel((128,), 4, None, True, 1.0),
    ActivationKernel((64,), 8, 128, False, 1.0),
    ActivationKernel((128, 128), 4, None, True, 0.9),
    ActivationKernel((128, 128), 8, None, True, 1.0),
    ActivationKernel((128, 128), 4, 64, False, 1.0),
)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("fmt", INTEGER, ids=str)
def test_integer_products_are_the_references_bits(fmt: Format, shape: tuple[int, int], library: KernelLibrary) -> None:
    channels, columns = shape
    packed = random_linear(fmt, channels, columns, seed=channels, device="cuda")
    weight = ReferenceWeight.of(moved(packed, "cpu"))
    for tokens in TOKENS:
        dtype = torch.float32 if tokens in (1, 64) else torch.bfloat16
        check_integer_product(packed, weight, random_input(tokens, columns, tokens, dtype, device="cuda"), library)


@pytest.mark.parametrize("fmt", INTEGER, ids=str)
def test_odd_shapes_are_the_references_bits(fmt: Format, library: KernelLibrary) -> None:
    columns = 37 * 256  # the last tile is half empty
    packed = random_linear(fmt, 203, columns, seed=1, device="cuda")
    weight = ReferenceWeight.of(moved(packed, "cpu"))
    for tokens in (1, 17, 123):
        check_integer_product(packed, weight, random_input(tokens, columns, 1, device="cuda"), library)


@pytest.mark.parametrize("columns", [32, 96, 160, 192])
def test_every_pack_block_is_the_references_bits(columns: int, library: KernelLibrary) -> None:
    packed = random_linear(Format(w_symmetric=False), 70, columns, seed=1, device="cuda")
    weight = ReferenceWeight.of(moved(packed, "cpu"))
    check_integer_product(packed, weight, random_input(9, columns, 1, device="cuda"), library)


@pytest.mark.parametrize("symmetric", [True, False])
def test_the_largest_sums_are_exact(symmetric: bool, library: KernelLibrary) -> None:
    fmt = Format(w_bits=8, w_symmetric=symmetric, a_bits=8, a_symmetric=symmetric)
    packed, prepared = largest_codes(fmt, 32768)
    scale, zero = prepared.scale, prepared.zero
    assert scale is not None
    there = replace(
        prepared,
        values=prepared.values.cuda(),
        scale=scale.cuda(),
        zero=None if zero is None else zero.cuda(),
    )
    found = multiplied_on_gpu(library, moved(packed, "cuda"), there)
    assert torch.equal(found.cpu(), reference.multiply(ReferenceWeight.of(packed), prepared))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("fmt", WEIGHT_ONLY, ids=str)
def test_weight_only_products_are_near_float64(fmt: Format, shape: tuple[int, int], library: KernelLibrary) -> None:
    channels, columns = shape
    packed = random_linear(fmt, channels, columns, seed=channels, device="cuda")
    weight = dequantized(packed)
    for tokens in TOKENS:
        for dtype, limit in ((torch.bfloat16, 1e-2), (torch.float16, 1e-2), (torch.float32, 1e-5)):
            x = random_input(tokens, columns, tokens, dtype, device="cuda")
            found = multiplied_on_gpu(library, packed, prepared_on_gpu(library, None, None, x))
            assert found.dtype == dtype
            assert relative_error(found, x.double() @ weight.T + packed.bias.double()) < limit


@pytest.mark.parametrize("columns", [4096, 12288, 18944])
@pytest.mark.parametrize("row", PLAIN_ROWS, ids=lambda row: row.name)
def test_row_kernels_without_transform_are_the_references_bits(
    row: ActivationKernel, columns: int, library: KernelLibrary
) -> None:
    for tokens in TOKENS:
        for dtype in (torch.float32, torch.float16, torch.bfloat16):
            check_plain_rows(row, random_input(tokens, columns, tokens, dtype, device="cuda"), library)


@triton.jit
def _count_wrong(wrong, QUOTIENT: tl.constexpr, BITS: tl.constexpr, EXPONENT: tl.constexpr, BLOCK: tl.constexpr):
    """y of BITS bits over s: how often the code is not that of IEEE division."""
    s = ((tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)) | 0x3F800000).to(tl.float32, bitcast=True)
    one = tl.program_id(1) << (24 - BITS) | (127 + EXPONENT) << 23
    y = (tl.zeros((BLOCK,), tl.int32) + one).to(tl.float32, bitcast=True)
    expected = (tl.div_rn(y, s) + 12582912.0).to(tl.int32, bitcast=True).to(tl.int8)
    code = (QUOTIENT(y, s, False) + 12582912.0).to(tl.int32, bitcast=True).to(tl.int8)
    tl.atomic_add(wrong, tl.sum((code != expected).to(tl.int32)))


@pytest.mark.parametrize("bits", [8, 11])
def test_every_quotient_of_short_numbers_has_the_code_of_ieee_division(bits: int, library: KernelLibrary) -> None:
    """Every mantissa of y, a bfloat16 or float16, over every mantissa of s, from 64 to 512: all ties have 9 bits there.

    So have those of every other format and size, by powers of two.
    """
    quotient = library.module(ActivationKernel((), 8, None, True, 1.0)).quotient
    for exponent in (7, 8):
        wrong = torch.zeros(1, dtype=torch.int32, device="cuda")
        _count_wrong[2**23 // 1024, 2 ** (bits - 1)](wrong, quotient, bits, exponent, 1024, enable_fp_fusion=False)
        assert wrong.item() == 0


@pytest.mark.parametrize("columns", [4096, 12288])
@pytest.mark.parametrize("row", ROTATED_ROWS, ids=lambda row: row.name)
def test_row_kernels_with_transform_are_near_float64(
    row: ActivationKernel, columns: int, library: KernelLibrary
) -> None:
    for tokens in TOKENS:
        for dtype in (torch.float32, torch.bfloat16):
            check_rotated_rows(row, columns, tokens, dtype, library)


@pytest.mark.parametrize("rotations", [(128,), (128, 128)])
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 1e-5), (torch.float16, 1e-2), (torch.bfloat16, 1e-2)])
def test_transforms_alone_are_near_float64(
    rotations: tuple[int, ...], dtype: torch.dtype, limit: float, library: KernelLibrary
) -> None:
    transform = random_transform(rotations, 4096, seed=3)
    assert transform is not None
    x = random_input(123, 4096, 3, dtype, device="cuda")
    found = prepared_on_gpu(library, ActivationKernel(rotations, 16, None, True, 1.0), transform, x)
    assert found.values.dtype == dtype
    assert relative_error(found.values, expected_transform(transform, x)) < limit


def test_a_small_transform_by_whole_matrices(library: KernelLibrary) -> None:
    transform = random_transform((16, 16), 96, seed=3)
    assert transform is not None
    x = random_input(19, 96, 3, device="cuda")
    row = ActivationKernel((16, 16), 16, None, True, 1.0)
    found = prepared_on_gpu(library, row, transform, x)
    assert relative_error(found.values, transformed(transform, x.cpu())) < 1e-5


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_never_becomes_a_plausible_number(bad: float, symmetric: bool, library: KernelLibrary) -> None:
    fmt = Format(w_bits=8, a_bits=8, a_symmetric=symmetric)
    packed = random_linear(fmt, 64, 4096, seed=0, bias=False, device="cuda")
    x = random_input(3, 4096, 0, device="cuda")
    x[2, 5] = bad
    y = multiplied_on_gpu(library, packed, prepared_on_gpu(library, packed.kernels.row, None, x))
    assert torch.isfinite(y[:2]).all()
    assert not torch.isfinite(y[2]).any()


def test_a_quantized_linear_runs_triton_and_agrees_with_the_cpu() -> None:
    transform = random_transform((128, 128), 4096, seed=0)
    packed = random_linear(Format(clip=0.9), 4096, 4096, seed=0, transform=transform)
    here, there = QuantLinear(packed), QuantLinear(packed).to("cuda")
    assert (here.execution, there.execution) == ("reference", "triton")
    x = random_input(3 * 41, 4096, 0, torch.bfloat16).reshape(3, 41, 4096)
    y = there(x.cuda())
    assert y.dtype == torch.bfloat16
    assert relative_error(y, here(x)) < 1e-2
    other = QuantLinear(random_linear(Format(clip=0.9), 1024, 4096, seed=1, transform=transform)).to("cuda")
    assert torch.equal(other.multiply(there.prepare(x.cuda())), other(x.cuda()))


def test_a_missing_kernel_is_an_error(tmp_path: Path) -> None:
    linear = QuantLinear(random_linear(Format(), 64, 64, seed=0), tmp_path).to("cuda")
    with pytest.raises(InputError, match="missing"):
        linear(torch.randn(2, 64, device="cuda"))
