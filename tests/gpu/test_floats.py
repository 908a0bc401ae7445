"""Kernels of float formats on a CUDA GPU: rows are the reference's bits, products near float64 of the same codes.

From compute capability 9.0 on fp8_e4m3 runs on the tensor cores, whose sums keep fewer bits than float32; mxfp4 and
nvfp4 do from 10.0 on, and elsewhere as bfloat16.

python -m pytest tests/gpu/test_floats.py -m gpu
"""

from __future__ import annotations

import pytest
import torch

from qspec.kernels import launch, reference, tuned
from qspec.kernels.generate import KernelLibrary
from qspec.kernels.linear import QuantLinear
from tests.gpu.on_gpu import on_cpu, prepared_on_gpu
from tests.kernels.cases import (
    FLOAT_WEIGHTS,
    FLOATS,
    Format,
    dequantized,
    dequantized_input,
    poisoned_memory,
    random_input,
    random_linear,
    relative_error,
)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]

SHAPES = ((4096, 4096), (512, 18944), (200, 1152), (203, 1184))  # the last: K no multiple of a tile, N of no box
TOKENS = (1, 3, 17, 123, 1000)
NEAR = 4e-3  # a bfloat16 rounding of the output is 1.7e-3
FP8 = 2e-2  # of 18944 products on a Hopper GPU, whose sums keep fewer bits than float32 (docs/kernels.md)


@pytest.mark.parametrize("columns", [4096, 3584, 18944])
@pytest.mark.parametrize("fmt", FLOATS, ids=str)
def test_rows_are_the_references_bits(fmt: Format, columns: int, library: KernelLibrary) -> None:
    row = random_linear(fmt, 8, columns, 0).kernels.row
    for tokens in TOKENS:
        for dtype in (torch.float32, torch.bfloat16):
            x = random_input(tokens, columns, tokens, dtype, device="cuda")
            found = on_cpu(prepared_on_gpu(library, row, None, x))
            expected = reference.prepare(row, None, x.cpu())
            assert torch.equal(found.values, expected.values)
            assert torch.equal(found.scale, expected.scale)
            assert (found.unit is None) == (expected.unit is None)
            if found.unit is not None:
                assert torch.equal(found.unit, expected.unit)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("fmt", FLOATS, ids=str)
def test_products_are_near_float64(fmt: Format, shape: tuple[int, int], library: KernelLibrary) -> None:
    packed = random_linear(fmt, *shape, seed=1, device="cuda")
    weight = dequantized(packed)
    for tokens in TOKENS:
        x = random_input(tokens, shape[1], tokens, torch.bfloat16, device="cuda")
        prepared = prepared_on_gpu(library, packed.kernels.row, None, x)
        exact = dequantized_input(prepared, fmt.number).cuda() @ weight.T + packed.bias.double()
        for options in (None, *tuned.candidates(packed.kernels.gemm, *shape, tokens)):
            with poisoned_memory():
                found = launch.multiply(library, packed, prepared, options)
                again = launch.multiply(library, packed, prepared, options)
            error = relative_error(found, exact)
            assert error < (FP8 if fmt.number == "fp8_e4m3" and shape[1] > 4096 else NEAR), (tokens, options)
            assert torch.equal(found, again), (tokens, options)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("fmt", FLOAT_WEIGHTS, ids=str)
def test_weights_alone_are_near_float64(fmt: Format, shape: tuple[int, int], library: KernelLibrary) -> None:
    packed = random_linear(fmt, *shape, seed=2, device="cuda")
    weight = dequantized(packed)
    for tokens in TOKENS:
        for dtype, limit in ((torch.bfloat16, NEAR), (torch.float16, 1e-2), (torch.float32, 1e-5)):
            x = random_input(tokens, shape[1], tokens, dtype, device="cuda")
            with poisoned_memory():
                found = launch.multiply(library, packed, prepared_on_gpu(library, None, None, x))
            assert relative_error(found, x.double() @ weight.T + packed.bias.double()) < limit


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's own imports
@pytest.mark.parametrize("fmt", [*FLOATS, *FLOAT_WEIGHTS], ids=str)
def test_a_linear_runs_compiled_and_in_a_graph(fmt: Format) -> None:
    linear = QuantLinear(random_linear(fmt, 256, 512, seed=3)).to("cuda")
    x = random_input(17, 512, 3, torch.bfloat16, device="cuda")
    expected = linear(x)
    torch._dynamo.reset()
    assert torch.equal(torch.compile(linear, backend="aot_eager", fullgraph=True)(x), expected)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = linear(x)
    y.zero_()
    graph.replay()
    assert torch.equal(y, expected)


@pytest.mark.parametrize("fmt", FLOATS, ids=str)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_never_becomes_a_plausible_number(fmt: Format, bad: float, library: KernelLibrary) -> None:
    packed = random_linear(fmt, 64, 4096, seed=0, bias=False, device="cuda")
    x = random_input(3, 4096, 0, device="cuda")
    x[2, 5] = bad
    y = launch.multiply(library, packed, prepared_on_gpu(library, packed.kernels.row, None, x))
    assert torch.isfinite(y[:2]).all()
    assert not torch.isfinite(y[2]).any()
