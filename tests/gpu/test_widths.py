"""Weights of 2 to 8 bits in groups of any size on a CUDA GPU, at Dream-7B's widths and odd numbers of rows.

python -m pytest tests/gpu/test_widths.py -m gpu
"""

from __future__ import annotations

import pytest
import torch

from qspec.catalog import ActivationKernel
from qspec.kernels.generate import KernelLibrary
from qspec.kernels.reference import ReferenceWeight
from tests.gpu.on_gpu import (
    check_integer_product,
    check_plain_rows,
    moved,
    multiplied_on_gpu,
    prepared_on_gpu,
)
from tests.kernels.cases import Format, dequantized, random_input, random_linear, relative_error

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]

CHANNELS = 203  # odd, no multiple of a tile
TOKENS = (1, 5, 123)
INTEGER = (
    (Format(w_bits=2, a_bits=8), 3584),
    (Format(w_bits=2, w_group=64, w_symmetric=False), 896),
    (Format(w_bits=3, w_group=128, a_bits=8), 18944),
    (Format(w_bits=3, w_group=112, w_symmetric=False, a_bits=8, a_group=64, a_symmetric=False), 3584),  # steps of 16
    (Format(w_bits=3, w_symmetric=False), 896),
    (Format(w_group=448, a_bits=8), 3584),
    (Format(w_group=148, w_symmetric=False, a_symmetric=False), 18944),
    (Format(w_bits=5, w_symmetric=False, a_bits=8, a_symmetric=False), 18944),
    (Format(w_bits=6, w_group=448, a_group=56), 3584),
    (Format(w_bits=6, w_group=24, w_symmetric=False, a_bits=8, a_symmetric=False), 12288),
    (Format(w_bits=7, w_group=28, w_symmetric=False, a_symmetric=False), 896),
    (Format(w_bits=7, a_group=1184), 18944),
    (Format(w_bits=8, w_group=56, w_symmetric=False, a_bits=8, a_group=64), 896),
)
WEIGHT_ONLY = (
    (Format(w_bits=2, w_group=64, w_symmetric=False, a_bits=16), 3584),
    (Format(w_bits=3, w_group=128, w_symmetric=False, a_bits=16), 18944),
    (Format(w_bits=3, a_bits=16), 896),
    (Format(w_group=448, a_bits=16), 3584),
    (Format(w_bits=5, w_group=28, a_bits=16), 896),
    (Format(w_bits=6, w_symmetric=False, a_bits=16), 18944),
    (Format(w_bits=7, w_group=112, w_symmetric=False, a_bits=16), 3584),
    (Format(w_bits=8, w_group=56, a_bits=16), 896),
)
ROWS = (
    (ActivationKernel((), 8, 56, False, 1.0), 3584),
    (ActivationKernel((), 4, 448, True, 0.9), 896),
    (ActivationKernel((), 8, 1184, False, 1.0), 18944),
    (ActivationKernel((), 4, 1, True, 1.0), 896),
)


@pytest.mark.parametrize(("fmt", "columns"), INTEGER, ids=str)
def test_integer_products_are_the_references_bits(fmt: Format, columns: int, library: KernelLibrary) -> None:
    packed = random_linear(fmt, CHANNELS, columns, seed=columns, device="cuda")
    weight = ReferenceWeight.of(moved(packed, "cpu"))
    for tokens in TOKENS:
        check_integer_product(packed, weight, random_input(tokens, columns, tokens, device="cuda"), library)


@pytest.mark.parametrize(("fmt", "columns"), WEIGHT_ONLY, ids=str)
def test_weight_only_products_are_near_float64(fmt: Format, columns: int, library: KernelLibrary) -> None:
    packed = random_linear(fmt, CHANNELS, columns, seed=columns, device="cuda")
    weight = dequantized(packed)
    assert packed.bias is not None
    for tokens in TOKENS:
        x = random_input(tokens, columns, tokens, torch.bfloat16, device="cuda")
        found = multiplied_on_gpu(library, packed, prepared_on_gpu(library, None, None, x))
        assert relative_error(found, x.double() @ weight.T + packed.bias.double()) < 1e-2


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 1e-5), (torch.float16, 1e-2)])
def test_three_bits_with_other_floats(dtype: torch.dtype, limit: float, library: KernelLibrary) -> None:
    packed = random_linear(
        Format(w_bits=3, w_group=128, w_symmetric=False, a_bits=16), CHANNELS, 3584, 0, device="cuda"
    )
    assert packed.bias is not None
    x = random_input(123, 3584, 0, dtype, device="cuda")
    found = multiplied_on_gpu(library, packed, prepared_on_gpu(library, None, None, x))
    assert relative_error(found, x.double() @ dequantized(packed).T + packed.bias.double()) < limit


@pytest.mark.parametrize(("row", "columns"), ROWS, ids=lambda part: getattr(part, "name", part))
def test_row_kernels_are_the_references_bits(row: ActivationKernel, columns: int, library: KernelLibrary) -> None:
    for tokens in TOKENS:
        check_plain_rows(row, random_input(tokens, columns, tokens, torch.bfloat16, device="cuda"), library)
