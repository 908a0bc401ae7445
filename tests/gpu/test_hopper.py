"""The second kernels, for compute capability 9.0: every choice of options, odd shapes, graphs, torch.compile.

N of 203 is none of theirs: rows that TMA does not take run the portable kernel.

python -m pytest tests/gpu/test_hopper.py -m gpu
"""

from __future__ import annotations

import pytest
import torch

from qspec.kernels import launch, reference
from qspec.kernels.generate import KernelLibrary
from qspec.kernels.linear import QuantLinear
from qspec.kernels.packing import PackedLinear
from qspec.kernels.reference import PreparedInput, ReferenceWeight
from tests.gpu.on_gpu import check_graphs_and_compiled, choices, moved, on_cpu, prepared_on_gpu, product
from tests.kernels.cases import Format, dequantized, random_input, random_linear, relative_error

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available() or torch.cuda.get_device_capability()[0] != 9, reason="needs a Hopper GPU"
    ),
]

INTEGER = (Format(), Format(a_bits=8), Format(w_bits=8, a_bits=8))
FLOATING = (
    Format(w_group=128, a_bits=16),
    Format(w_group=256, w_symmetric=False, a_bits=16),
    Format(w_symmetric=False, a_bits=16),
    Format(w_bits=3, w_group=128, a_bits=16),
    Format(w_bits=3, w_group=128, w_symmetric=False, a_bits=16),
    Format(w_bits=2, w_group=256, w_symmetric=False, a_bits=16),
    Format(w_bits=3, a_bits=16),
)
TOKENS = (1, 3, 17, 123, 1000)


def largest(packed: PackedLinear, tokens: int, columns: int) -> PreparedInput:
    """Activations of the largest codes, by which sums grow furthest."""
    code = 2 ** (packed.kernels.gemm.activation_bits - 1) - 1
    codes = torch.full((tokens, columns), code, dtype=torch.int8, device="cuda")
    return PreparedInput(codes, torch.ones(1, tokens, device="cuda"), None, codes.shape, torch.float32)


@pytest.mark.parametrize("shape", [(3584, 3584), (512, 18944), (200, 1152), (203, 1152)], ids=str)
@pytest.mark.parametrize("fmt", INTEGER, ids=str)
def test_integer_products_are_the_references_bits(fmt: Format, shape: tuple[int, int], library: KernelLibrary) -> None:
    packed = random_linear(fmt, *shape, seed=1, device="cuda")
    weight = ReferenceWeight.of(moved(packed, "cpu"))
    for tokens in TOKENS:
        x = random_input(tokens, shape[1], tokens, torch.bfloat16, device="cuda")
        prepared = prepared_on_gpu(library, packed.kernels.row, None, x)
        expected = reference.multiply(weight, on_cpu(prepared))
        assert torch.equal(product(library, packed, prepared, None).cpu(), expected)


@pytest.mark.parametrize("tokens", [1, 64, 123, 1000])
@pytest.mark.parametrize("fmt", INTEGER, ids=str)
def test_every_choice_gives_the_same_bits(fmt: Format, tokens: int, library: KernelLibrary) -> None:
    packed = random_linear(fmt, 328, 18944, seed=2, device="cuda")
    weight = ReferenceWeight.of(moved(packed, "cpu"))
    x = random_input(tokens, 18944, tokens, device="cuda")
    prepared = prepared_on_gpu(library, packed.kernels.row, None, x)
    expected = reference.multiply(weight, on_cpu(prepared))
    for options in choices(packed.kernels.gemm, 328, 18944, tokens):
        assert torch.equal(product(library, packed, prepared, options).cpu(), expected), options


@pytest.mark.parametrize("tokens", [17, 64, 200])
@pytest.mark.parametrize("fmt", INTEGER, ids=str)
def test_programs_that_take_several_tiles(fmt: Format, tokens: int, library: KernelLibrary) -> None:
    """More tiles than fit at once, of three blocks each: slices begin with another stage in every tile."""
    packed = random_linear(fmt, 40000, 384, seed=6, device="cuda")
    weight = ReferenceWeight.of(moved(packed, "cpu"))
    prepared = prepared_on_gpu(library, packed.kernels.row, None, random_input(tokens, 384, tokens, device="cuda"))
    expected = reference.multiply(weight, on_cpu(prepared))
    for options in choices(packed.kernels.gemm, 40000, 384, tokens):
        assert torch.equal(product(library, packed, prepared, options).cpu(), expected), options


@pytest.mark.parametrize("fmt", INTEGER, ids=str)
def test_the_largest_sums_are_exact(fmt: Format, library: KernelLibrary) -> None:
    """Every product of the largest size and one sign, K = 18944: no sum is rounded or overflows."""
    packed = random_linear(fmt, 64, 18944, seed=3, bias=False, device="cuda")
    weight = ReferenceWeight.of(moved(packed, "cpu"))
    prepared = largest(packed, 5, 18944)
    expected = reference.multiply(weight, on_cpu(prepared))
    assert torch.equal(product(library, packed, prepared, None).cpu(), expected)


@pytest.mark.parametrize("shape", [(3584, 3584), (512, 18944), (200, 1280), (203, 1280)], ids=str)
@pytest.mark.parametrize("fmt", FLOATING, ids=str)
def test_weight_only_products_are_near_float64(fmt: Format, shape: tuple[int, int], library: KernelLibrary) -> None:
    packed = random_linear(fmt, *shape, seed=4, device="cuda")
    weight = dequantized(packed)
    for tokens in TOKENS:
        x = random_input(tokens, shape[1], tokens, torch.bfloat16, device="cuda")
        exact = x.double() @ weight.T + packed.bias.double()
        for options in (None, *choices(packed.kernels.gemm, *shape, tokens)):
            first = product(library, packed, prepared_on_gpu(library, None, None, x), options)
            assert relative_error(first, exact) < 4e-3, options
            again = product(library, packed, prepared_on_gpu(library, None, None, x), options)
            assert torch.equal(first, again), options


def residual_of(packed: PackedLinear, tokens: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    """[tokens, N] of the sizes of a product; its rows do not follow one another."""
    channels = packed.out_features
    return random_input(tokens, 2 * channels, tokens, dtype, device="cuda")[:, channels:]


@pytest.mark.parametrize("shape", [(3584, 3584), (200, 18944), (203, 1280)], ids=str)
@pytest.mark.parametrize("fmt", [*INTEGER[::2], FLOATING[0]], ids=str)
def test_a_residual_is_added_to_the_rounded_product(
    fmt: Format, shape: tuple[int, int], library: KernelLibrary
) -> None:
    packed = random_linear(fmt, *shape, seed=7, device="cuda")
    weight = ReferenceWeight.of(moved(packed, "cpu"))
    for tokens in TOKENS:
        dtype = torch.float32 if tokens == 123 else torch.bfloat16
        x, residual = random_input(tokens, shape[1], tokens, dtype, device="cuda"), residual_of(packed, tokens, dtype)
        prepared = prepared_on_gpu(library, packed.kernels.row, None, x)
        found = product(library, packed, prepared, None, residual)
        assert torch.equal(found, residual + product(library, packed, prepared, None))
        if fmt.a_bits < 16:
            assert torch.equal(found.cpu(), reference.multiply(weight, on_cpu(prepared), residual.cpu()))


@pytest.mark.parametrize("tokens", [17, 200])
@pytest.mark.parametrize("fmt", [INTEGER[0], FLOATING[0]], ids=str)
def test_every_choice_adds_the_residual(fmt: Format, tokens: int, library: KernelLibrary) -> None:
    """By the unit that finishes a tile, the slice that adds the others' sums, in programs that take several tiles."""
    for shape in ((328, 18944), (40000, 384)):
        packed = random_linear(fmt, *shape, seed=8, device="cuda")
        x, residual = random_input(tokens, shape[1], 8, torch.bfloat16, device="cuda"), residual_of(packed, tokens)
        prepared = prepared_on_gpu(library, packed.kernels.row, None, x)
        for options in choices(packed.kernels.gemm, *shape, tokens):
            alone = product(library, packed, prepared, options)
            assert torch.equal(product(library, packed, prepared, options, residual), residual + alone), options


@pytest.mark.parametrize("tokens", [1, 32, 300])
@pytest.mark.parametrize("fmt", [INTEGER[0], FLOATING[0]], ids=str)
def test_a_residual_that_the_kernel_before_writes(fmt: Format, tokens: int, library: KernelLibrary) -> None:
    """Programmatic launch: the second product starts while the first one, of more channels a program, still runs."""
    first, second = (random_linear(fmt, 4096, columns, seed=9, device="cuda") for columns in (12288, 1024))
    inputs = [random_input(tokens, one.in_features, 9, torch.bfloat16, device="cuda") for one in (first, second)]
    wide, narrow = (
        prepared_on_gpu(library, one.kernels.row, None, x) for one, x in zip((first, second), inputs, strict=True)
    )
    expected = launch.multiply(library, first, wide) + launch.multiply(library, second, narrow)
    launch.multiply(library, second, narrow, residual=expected)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        before = launch.multiply(library, first, wide)
        found = launch.multiply(library, second, narrow, residual=before)
    for _ in range(20):
        before.fill_(float("nan"))
        found.fill_(float("nan"))
        graph.replay()
        assert torch.equal(found, expected)


def test_a_graph_of_few_tokens_goes_on_after_a_launch_of_many(library: KernelLibrary) -> None:
    """Split-K goes on counting where the graph was captured, which no later launch frees."""
    packed = random_linear(Format(), 4096, 12288, seed=10, device="cuda")
    few, many = (
        prepared_on_gpu(library, packed.kernels.row, None, random_input(tokens, 12288, 10, torch.bfloat16, "cuda"))
        for tokens in (17, 9000)
    )
    options = next(one for one in choices(packed.kernels.gemm, 4096, 12288, 17) if one.get("SPLIT", 0) > 1)
    expected = launch.multiply(library, packed, few, options)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = launch.multiply(library, packed, few, options)
    launch.multiply(library, packed, many, options)
    after = [torch.full((1024,), 7, dtype=torch.int32, device="cuda") for _ in range(64)]
    for _ in range(3):
        found.fill_(float("nan"))
        graph.replay()
        assert torch.equal(found, expected)
    assert all(bool((one == 7).all()) for one in after)


@pytest.mark.parametrize("fmt", [Format(), Format(w_group=128, a_bits=16)], ids=str)
def test_graphs_and_compiled_modules_give_the_same(fmt: Format) -> None:
    linear = QuantLinear(random_linear(fmt, 4096, 4096, seed=5, device="cuda"))
    prepared, x = check_graphs_and_compiled(linear)
    compiled = torch.compile(linear.multiply, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(prepared, x), x + linear.multiply(prepared))
