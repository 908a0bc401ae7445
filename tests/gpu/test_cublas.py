"""Weight-only products by cuBLAS, of weights that a generated kernel wrote down.

python -m pytest tests/gpu/test_cublas.py -m gpu
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from qspec.kernels import launch, tuned
from qspec.kernels.generate import KernelLibrary
from qspec.kernels.linear import QuantLinear
from qspec.kernels.packing import PackedLinear
from tests.kernels.cases import (
    Format,
    dequantized,
    poisoned_memory,
    random_input,
    random_linear,
    relative_error,
    rounded_weights,
)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]

FORMATS = (
    (Format(a_bits=16), 896),
    (Format(w_group=128, w_symmetric=False, a_bits=16), 3584),
    (Format(w_group=64, a_bits=16), 896),
    (Format(w_group=448, w_symmetric=False, a_bits=16), 896),
    (Format(w_bits=2, w_group=64, w_symmetric=False, a_bits=16), 3584),
    (Format(w_bits=3, w_group=128, w_symmetric=False, a_bits=16), 18944),
    (Format(w_bits=3, a_bits=16), 864),
    (Format(w_bits=5, w_group=28, a_bits=16), 896),
    (Format(w_bits=6, w_symmetric=False, a_bits=16), 1056),
    (Format(w_bits=7, w_group=112, w_symmetric=False, a_bits=16), 3584),
    (Format(w_bits=8, a_bits=16), 12288),
    (Format(w_bits=8, w_group=56, a_bits=16), 896),
)
HALVES = (torch.bfloat16, torch.float16)


def product(library: KernelLibrary, packed: PackedLinear, x: Tensor) -> Tensor:
    with poisoned_memory():
        return launch.multiply(library, packed, launch.prepare(library, None, None, x), tuned.CUBLAS)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize(("fmt", "columns"), FORMATS, ids=str)
def test_weights_are_rounded_once(fmt: Format, columns: int, dtype: torch.dtype, library: KernelLibrary) -> None:
    """Of rows of the identity the product is the weights themselves: one term of a sum is not zero."""
    packed = random_linear(fmt, 203, columns, seed=columns, bias=False, device="cuda")
    found = product(library, packed, torch.eye(columns, dtype=dtype, device="cuda"))
    assert torch.equal(found.T, rounded_weights(packed, dtype))


@pytest.mark.parametrize(("dtype", "limit"), [(torch.bfloat16, 4e-3), (torch.float16, 1e-3)])
@pytest.mark.parametrize(("fmt", "columns"), FORMATS, ids=str)
def test_products_are_near_float64(
    fmt: Format, columns: int, dtype: torch.dtype, limit: float, library: KernelLibrary
) -> None:
    for tokens, channels, bias in ((1, 512, True), (123, 203, False), (1000, 512, True)):
        packed = random_linear(fmt, channels, columns, tokens, bias, device="cuda")
        x = random_input(tokens, columns, tokens, dtype, device="cuda")
        exact = x.double() @ dequantized(packed).T
        exact += 0 if packed.bias is None else packed.bias.double()
        assert relative_error(product(library, packed, x), exact) < limit


@pytest.mark.parametrize("fmt", [Format(w_group=128, a_bits=16), Format(w_bits=3, w_group=128, a_bits=16)], ids=str)
def test_graphs_give_the_same_and_keep_one_copy(fmt: Format, library: KernelLibrary) -> None:
    """Three products of one graph share the memory of the weights that they write down."""
    several = [random_linear(fmt, 2048, 4096, seed, device="cuda") for seed in range(3)]
    x = random_input(256, 4096, 5, torch.bfloat16, device="cuda")
    expected = [product(library, packed, x) for packed in several]
    prepared = launch.prepare(library, None, None, x)
    graph, before = torch.cuda.CUDAGraph(), torch.cuda.memory_reserved()
    with torch.cuda.graph(graph):
        found = [launch.multiply(library, packed, prepared, tuned.CUBLAS) for packed in several]
    assert torch.cuda.memory_reserved() - before < 3 * 2 * 2048 * 4096
    for _ in range(3):
        for y in found:
            y.fill_(float("nan"))
        graph.replay()
        assert all(torch.equal(y, e) for y, e in zip(found, expected, strict=True))


@pytest.mark.parametrize("fmt", [Format(w_group=128, a_bits=16), Format(w_bits=3, w_group=128, a_bits=16)], ids=str)
def test_many_tokens_under_torch_compile(fmt: Format) -> None:
    linear = QuantLinear(random_linear(fmt, 512, 4096, seed=5, device="cuda"))
    prepared = linear.prepare(random_input(8192, 4096, 5, torch.bfloat16, device="cuda"))
    compiled = torch.compile(linear.multiply, backend="aot_eager", fullgraph=True)
    expected = linear.multiply(prepared)
    assert torch.equal(compiled(prepared), expected)
    residual = random_input(8192, 512, 6, torch.bfloat16, device="cuda")
    assert torch.equal(compiled(prepared, residual), residual + expected)
