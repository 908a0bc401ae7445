"""The generated kernels on a CUDA GPU, at LLaDA-8B's shapes, against the CPU reference and float64.

python -m pytest tests/gpu -m gpu
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from qspec.catalog import RowKernel
from qspec.errors import InputError
from qspec.kernels import launch, reference
from qspec.kernels.generate import KernelLibrary
from qspec.kernels.launch import PlacedTransform
from qspec.kernels.linear import QuantLinear
from qspec.kernels.packing import PackedLinear
from qspec.kernels.reference import PreparedInput, ReferenceWeight
from qspec.transforms import InputTransform
from tests.kernels.cases import (
    Format,
    codes_that_differ,
    dequantized_input,
    largest_codes,
    poisoned_memory,
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
    RowKernel((), 4, None, True, 0.9),
    RowKernel((), 8, None, False, 1.0),
    RowKernel((), 8, 128, True, 1.0),
    RowKernel((), 4, 64, False, 0.95),
)
ROTATED_ROWS = tuple(
    (row, columns)
    for row in (
        RowKernel((128,), 4, None, True, 1.0),
        RowKernel((64,), 8, 128, False, 1.0),
        RowKernel((128, 128), 4, None, True, 0.9),
        RowKernel((128, 128), 8, None, True, 1.0),
        RowKernel((128, 128), 4, 64, False, 1.0),
    )
    for columns in (4096, 12288)
)
HADAMARD_ROWS = (  # the sizes of LLaDA-8B, Dream-7B and the stand-ins: K is the product of the two blocks
    *(
        (RowKernel((first, second), 4, None, True, 1.0), first * second)
        for first, second in (
            (128, 32),
            (128, 96),
            (128, 28),
            (128, 148),
            (64, 12),
            (32, 28),
            (128, 2),
            (128, 8),
            (64, 256),
        )
    ),
    (RowKernel((128, 28), 8, 128, False, 1.0), 3584),  # groups cut blocks: through scratch
    (RowKernel((128, 148), 4, 64, True, 1.0), 18944),
    (RowKernel((64, 8), 4, 128, False, 0.9), 4096),  # a group is several blocks
)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> KernelLibrary:
    patch = pytest.MonkeyPatch()
    patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    return KernelLibrary()


def moved(packed: PackedLinear, device: str) -> PackedLinear:
    tensors = {name: getattr(packed, name) for name in ("codes", "scale", "zero", "bias")}
    return replace(packed, **{name: None if t is None else t.to(device) for name, t in tensors.items()})


def on_cpu(prepared: PreparedInput) -> PreparedInput:
    scale = None if prepared.scale is None else prepared.scale.cpu()
    zero = None if prepared.zero is None else prepared.zero.cpu()
    return replace(prepared, values=prepared.values.cpu(), scale=scale, zero=zero)


def prepared_on_gpu(
    library: KernelLibrary, row: RowKernel | None, transform: InputTransform | None, x: Tensor
) -> PreparedInput:
    placed = None if transform is None else PlacedTransform.of(transform, x.device)
    with poisoned_memory():
        return launch.prepare(library, row, placed, x)


def multiplied_on_gpu(library: KernelLibrary, packed: PackedLinear, prepared: PreparedInput) -> Tensor:
    with poisoned_memory():
        return launch.multiply(library, packed, prepared)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("fmt", INTEGER, ids=str)
def test_integer_products_are_the_references_bits(fmt: Format, shape: tuple[int, int], library: KernelLibrary) -> None:
    channels, columns = shape
    packed = random_linear(fmt, channels, columns, seed=channels, device="cuda")
    weight = ReferenceWeight.of(moved(packed, "cpu"))
    for tokens in TOKENS:
        dtype = torch.float32 if tokens in (1, 64) else torch.bfloat16
        x = random_input(tokens, columns, tokens, dtype, device="cuda")
        prepared = prepared_on_gpu(library, packed.kernels.row, None, x)
        found = multiplied_on_gpu(library, packed, prepared)
        assert torch.equal(found.cpu(), reference.multiply(weight, on_cpu(prepared)))


@pytest.mark.parametrize("fmt", INTEGER, ids=str)
def test_odd_shapes_are_the_references_bits(fmt: Format, library: KernelLibrary) -> None:
    columns = 37 * 256  # the last tile is half empty
    packed = random_linear(fmt, 203, columns, seed=1, device="cuda")
    weight = ReferenceWeight.of(moved(packed, "cpu"))
    for tokens in (1, 17, 123):
        x = random_input(tokens, columns, 1, device="cuda")
        prepared = prepared_on_gpu(library, packed.kernels.row, None, x)
        found = multiplied_on_gpu(library, packed, prepared)
        assert torch.equal(found.cpu(), reference.multiply(weight, on_cpu(prepared)))


@pytest.mark.parametrize("columns", [32, 96, 160, 192])
def test_every_pack_block_is_the_references_bits(columns: int, library: KernelLibrary) -> None:
    packed = random_linear(Format(w_symmetric=False), 70, columns, seed=1, device="cuda")
    prepared = prepared_on_gpu(library, packed.kernels.row, None, random_input(9, columns, 1, device="cuda"))
    found = multiplied_on_gpu(library, packed, prepared)
    weight = ReferenceWeight.of(moved(packed, "cpu"))
    assert torch.equal(found.cpu(), reference.multiply(weight, on_cpu(prepared)))


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
    zeros = packed.unpacked_zeros()
    scale = packed.scale.T.double()
    size = columns // scale.shape[1]
    offset = torch.zeros_like(scale) if zeros is None else zeros.T.double()
    codes = packed.unpacked_codes().double()
    weight = (codes - offset.repeat_interleave(size, 1)) * scale.repeat_interleave(size, 1)
    for tokens in TOKENS:
        for dtype, limit in ((torch.bfloat16, 1e-2), (torch.float16, 1e-2), (torch.float32, 1e-5)):
            x = random_input(tokens, columns, tokens, dtype, device="cuda")
            found = multiplied_on_gpu(library, packed, prepared_on_gpu(library, None, None, x))
            assert found.dtype == dtype
            assert relative_error(found, x.double() @ weight.T + packed.bias.double()) < limit


@pytest.mark.parametrize("columns", [4096, 12288, 18944])
@pytest.mark.parametrize("row", PLAIN_ROWS, ids=lambda row: row.name)
def test_row_kernels_without_transform_are_the_references_bits(
    row: RowKernel, columns: int, library: KernelLibrary
) -> None:
    for tokens in TOKENS:
        for dtype in (torch.float32, torch.float16, torch.bfloat16):
            x = random_input(tokens, columns, tokens, dtype, device="cuda")
            found = on_cpu(prepared_on_gpu(library, row, None, x))
            expected = reference.prepare(row, None, x.cpu())
            assert torch.equal(found.scale, expected.scale)
            assert torch.equal(found.values, expected.values)
            if not row.symmetric:
                assert torch.equal(found.zero, expected.zero)


@pytest.mark.parametrize(("row", "columns"), ROTATED_ROWS + HADAMARD_ROWS, ids=lambda part: getattr(part, "name", part))
def test_row_kernels_with_transform_are_near_float64(row: RowKernel, columns: int, library: KernelLibrary) -> None:
    transform = random_transform(row.rotations, columns, seed=columns)
    assert transform is not None
    for tokens in TOKENS:
        for dtype in (torch.float32, torch.bfloat16):
            x = random_input(tokens, columns, tokens, dtype, device="cuda")
            found = on_cpu(prepared_on_gpu(library, row, transform, x))
            expected = reference.prepare(row, transform, x.cpu())
            assert torch.allclose(found.scale, expected.scale, rtol=1e-5, atol=0)
            assert codes_that_differ(found, expected) < 2e-3
            exact = expected_transform(transform, x)
            errors = [relative_error(dequantized_input(p), exact) for p in (found, expected)]
            assert errors[0] < 1.01 * errors[1]


def expected_transform(transform: InputTransform, x: Tensor) -> Tensor:
    """T(x) in float64 on the GPU, block by block: whole matrices of this size take too long."""

    def rotated(y: Tensor, rotation: Tensor) -> Tensor:
        return (y.reshape(-1, rotation.shape[0]) @ rotation.double().to(x.device)).reshape(x.shape)

    y = rotated(x.double(), transform.rotations[0])
    if transform.permutation is None:
        return y.cpu()
    return rotated(y[:, transform.permutation.long().to(x.device)], transform.rotations[1]).cpu()


@pytest.mark.parametrize("rotations", [(128,), (128, 128)])
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 1e-5), (torch.float16, 1e-2), (torch.bfloat16, 1e-2)])
def test_transforms_alone_are_near_float64(
    rotations: tuple[int, ...], dtype: torch.dtype, limit: float, library: KernelLibrary
) -> None:
    transform = random_transform(rotations, 4096, seed=3)
    assert transform is not None
    x = random_input(123, 4096, 3, dtype, device="cuda")
    found = prepared_on_gpu(library, RowKernel(rotations, 16, None, True, 1.0), transform, x)
    assert found.values.dtype == dtype
    assert relative_error(found.values, expected_transform(transform, x)) < limit


def test_a_small_transform_by_whole_matrices(library: KernelLibrary) -> None:
    transform = random_transform((16, 16), 96, seed=3)
    assert transform is not None
    x = random_input(19, 96, 3, device="cuda")
    row = RowKernel((16, 16), 16, None, True, 1.0)
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
