"""Row kernels with two rotations of different sizes on a CUDA GPU: the Hadamard matrices of QuaRot.

python -m pytest tests/gpu/test_rotations.py -m gpu
"""

from __future__ import annotations

import pytest
import torch

from qspec.catalog import ActivationKernel
from qspec.kernels import reference
from qspec.kernels.generate import KernelLibrary
from tests.gpu.on_gpu import check_rotated_rows, expected_transform, on_cpu, prepared_on_gpu
from tests.kernels.cases import (
    codes_that_differ,
    random_given,
    random_input,
    random_transform,
    relative_error,
    scale_tolerance,
    to_cpu,
)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]

TOKENS = (1, 5, 123, 301)  # the last one is where second kernels hold two rows of 4096 channels
# The sizes of LLaDA-8B, Dream-7B and the stand-ins: K is the product of the two blocks. On compute capability 9.0,
# 128 x 2, 128 x 8 and 128 x 36 have pieces of 16 columns.
HADAMARD_ROWS = (
    *(
        (ActivationKernel((first, second), 4, None, True, 1.0), first * second)
        for first, second in (
            (128, 32),
            (128, 96),
            (128, 28),
            (128, 148),
            (64, 12),
            (32, 28),
            (16, 16),
            (64, 16),
            (128, 2),
            (128, 8),
            (128, 36),
            (64, 256),
        )
    ),
    (
        ActivationKernel((16, 16), 4, None, True, 1.0),
        11008,
    ),  # 43 blocks, of which each is a Hadamard matrix of order 256
    (ActivationKernel((32,), 8, None, True, 1.0), 1184),
    (ActivationKernel((128, 108), 4, None, True, 1.0), 13824),
    (ActivationKernel((128, 28), 8, 128, False, 1.0), 3584),  # groups cut blocks: through scratch
    (ActivationKernel((128, 148), 4, 64, True, 1.0), 18944),
    (ActivationKernel((64, 8), 4, 128, False, 0.9), 4096),  # a group is several blocks
)


@pytest.mark.parametrize(("row", "columns"), HADAMARD_ROWS, ids=lambda part: getattr(part, "name", part))
def test_rows_are_near_float64(row: ActivationKernel, columns: int, library: KernelLibrary) -> None:
    for tokens in TOKENS:
        check_rotated_rows(row, columns, tokens, torch.bfloat16, library)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(
    ("source", "rotations", "columns"),
    [
        ("rmsnorm", (), 3584),
        ("rmsnorm", (), 4096),
        ("silu_mul", (), 12288),
        ("silu_mul", (), 18944),
        ("rmsnorm", (128,), 4096),
        ("rmsnorm", (128, 128), 4096),
        ("rmsnorm", (128, 28), 3584),
        ("plain", (128, 32), 4096),
        ("plain", (128, 28), 3584),
        ("gelu_tanh_mul", (), 2112),
        ("gelu_tanh_mul", (128,), 2304),
        ("silu_mul", (16, 16), 11008),
        ("silu_mul", (128,), 18944),
        ("silu_mul", (128, 128), 12288),
        ("silu_mul", (128, 128), 18944),
        ("silu_mul", (128, 96), 12288),
        ("silu_mul", (128, 148), 18944),
    ],
)
def test_rows_compute_their_input_as_the_reference(
    source: str, rotations: tuple[int, ...], columns: int, dtype: torch.dtype, library: KernelLibrary
) -> None:
    for bits in (4, 8):
        row = ActivationKernel(rotations, bits, None, True, 1.0, source=source)
        transform = random_transform(rotations, columns, 1)
        for tokens in TOKENS:
            given = random_given(source, tokens, columns, tokens, dtype, "cuda")
            found = on_cpu(prepared_on_gpu(library, row, transform, given))
            expected = reference.prepare(row, transform, to_cpu(given))
            assert torch.allclose(found.scale, expected.scale, rtol=scale_tolerance(row, dtype), atol=0)
            assert codes_that_differ(found, expected) < 2e-3


@pytest.mark.parametrize("columns", [128, 1152, 6272, 24576])
@pytest.mark.parametrize("rotations", [(128,), (128, 128), (128, 64)], ids=str)
def test_other_widths_and_clips(rotations: tuple[int, ...], columns: int, library: KernelLibrary) -> None:
    for bits in (4, 8):
        row = ActivationKernel(rotations, bits, None, True, 0.9)
        for tokens in (1, 301):
            check_rotated_rows(row, columns, tokens, torch.bfloat16, library)


@pytest.mark.parametrize("worst", [float("nan"), float("inf")])
@pytest.mark.parametrize("rotations", [(128,), (128, 128)], ids=str)
def test_what_is_not_finite_shows_in_the_scale(
    rotations: tuple[int, ...], worst: float, library: KernelLibrary
) -> None:
    for tokens in (3, 301):
        x = random_input(tokens, 4096, tokens, torch.bfloat16, device="cuda")
        x[2, 1000] = worst
        row = ActivationKernel(rotations, 4, None, True, 1.0)
        found = prepared_on_gpu(library, row, random_transform(rotations, 4096, 1), x)
        finite = found.scale[0].isfinite()
        assert not finite[2]
        assert finite.sum() == tokens - 1


def test_rows_of_float32_are_near_float64(library: KernelLibrary) -> None:
    for tokens in TOKENS:
        check_rotated_rows(ActivationKernel((128, 28), 4, None, True, 1.0), 3584, tokens, torch.float32, library)


@pytest.mark.parametrize("rotations", [(128, 148), (128, 28), (32, 256)])
def test_transforms_alone_are_near_float64(rotations: tuple[int, int], library: KernelLibrary) -> None:
    columns = rotations[0] * rotations[1]
    transform = random_transform(rotations, columns, seed=3)
    assert transform is not None
    x = random_input(123, columns, 3, device="cuda")
    found = prepared_on_gpu(library, ActivationKernel(rotations, 16, None, True, 1.0), transform, x)
    assert relative_error(found.values, expected_transform(transform, x)) < 1e-5
