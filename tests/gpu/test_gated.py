"""Products of gate and up that give f(gate) up: the bits of a product of both, and a row kernel behind it.

python -m pytest tests/gpu/test_gated.py -m gpu
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from qspec.catalog import Activation, ActivationKernel
from qspec.kernels import launch, reference, tuned
from qspec.kernels.generate import KernelLibrary
from qspec.kernels.linear import QuantLinear
from qspec.kernels.packing import PackedLinear
from qspec.kernels.reference import PreparedInput, ReferenceWeight
from qspec.models.inputs import Gated
from tests.gpu.on_gpu import check_graphs_and_compiled, choices, moved, on_cpu, prepared_on_gpu, product
from tests.kernels.cases import Format, random_gates, random_input, relative_error

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]

SECOND = (  # with a kernel of its own for compute capability 9.0
    Format(),
    Format(a_bits=8),
    Format(w_bits=8, a_bits=8),
    Format(8, None, True, 8, number="fp8_e4m3"),
    Format(w_group=128, a_bits=16),
    Format(w_group=256, w_symmetric=False, a_bits=16),
    Format(w_bits=3, w_group=128, a_bits=16),
)
OTHERS = (
    Format(w_group=128, w_symmetric=False, a_bits=8, a_symmetric=False),
    Format(w_bits=3, w_group=64, w_symmetric=False, a_bits=16),
    Format(8, a_bits=16, number="fp8_e4m3"),
    Format(4, 16, True, 4, 16, number="nvfp4"),
)
TOKENS = (1, 3, 17, 123, 1000)
SHAPES = ((12288, 4096), (18944, 3584), (200, 1280), (24, 768))  # channels of gate, input channels


def apart(
    library: KernelLibrary,
    plain: PackedLinear,
    prepared: PreparedInput,
    options: tuned.Options | None,
    activation: Activation = "silu",
) -> Tensor:
    """f(gate) up by a product of both and a row kernel."""
    gate, up = product(library, plain, prepared, options).chunk(2, dim=1)
    row = ActivationKernel((), 16, None, True, 1.0, source=f"{activation}_mul")
    return launch.prepare(library, row, None, Gated(gate, up, activation)).values


def differing(found: Tensor, expected: Tensor) -> Tensor:
    """Where bits differ, but for f(gate) up to 1e-36, which is 0 in kernels for Hopper GPUs alone."""
    tiny = (expected.abs() < 1e-25) & (found.abs() < 1e-25) & (found != expected)
    assert float(tiny.double().mean()) < 1e-2
    return (found != expected) & ~tiny


def alike(found: Tensor, expected: Tensor) -> bool:
    return not bool(differing(found, expected).any())


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("fmt", [*SECOND, *OTHERS], ids=str)
def test_the_bits_are_those_of_two_kernels(fmt: Format, shape: tuple[int, int], library: KernelLibrary) -> None:
    gated, plain = random_gates(fmt, *shape, 1, device="cuda")
    for tokens in TOKENS:
        dtype = torch.float32 if tokens == 3 else torch.bfloat16
        x = random_input(tokens, shape[1], tokens, dtype, device="cuda")
        prepared = prepared_on_gpu(library, gated.kernels.row, None, x)
        assert alike(product(library, gated, prepared, None), apart(library, plain, prepared, None)), tokens


@pytest.mark.parametrize("fmt", [*SECOND[1:5], *OTHERS], ids=str)
def test_gelu_has_the_bits_of_two_kernels(fmt: Format, library: KernelLibrary) -> None:
    gated, plain = random_gates(fmt, 704, 768, 6, device="cuda", activation="gelu_tanh")
    for tokens in (3, 123):
        dtype = torch.float32 if tokens == 3 else torch.bfloat16
        prepared = prepared_on_gpu(library, gated.kernels.row, None, random_input(tokens, 768, 1, dtype, device="cuda"))
        expected = apart(library, plain, prepared, None, "gelu_tanh")
        assert alike(product(library, gated, prepared, None), expected), tokens


@pytest.mark.parametrize("tokens", [17, 64, 200, 1000])
@pytest.mark.parametrize("fmt", SECOND, ids=str)
def test_every_choice_gates(fmt: Format, tokens: int, library: KernelLibrary) -> None:
    """Slices, parts of a tile, cuBLAS; programs that take several tiles."""
    for channels, columns in ((168, 18944), (20000, 768)):
        gated, plain = random_gates(fmt, channels, columns, 2, device="cuda")
        x = random_input(tokens, columns, tokens, torch.bfloat16, device="cuda")
        prepared = prepared_on_gpu(library, gated.kernels.row, None, x)
        found = choices(gated.kernels.gemm, 2 * channels, columns, tokens)
        assert any(options.get("K_SLICES", 1) > 1 for options in found) == (tokens <= (64 if fmt.w_bits == 3 else 256))
        for options in found:
            expected = apart(library, plain, prepared, options)
            assert alike(product(library, gated, prepared, options), expected), options


@pytest.mark.parametrize("fmt", [*SECOND[4:], *OTHERS[1:3]], ids=str)
def test_cublas_gates(fmt: Format, library: KernelLibrary) -> None:
    """Of few and many tokens; a bias is added to what cuBLAS rounded, or by it."""
    for tokens, bias in ((1, True), (123, False), (1000, True)):
        gated, plain = random_gates(fmt, 1000, 1280, 3, bias, device="cuda")
        x = random_input(tokens, 1280, tokens, torch.bfloat16, device="cuda")
        prepared = prepared_on_gpu(library, gated.kernels.row, None, x)
        found = product(library, gated, prepared, tuned.CUBLAS)
        assert relative_error(found, apart(library, plain, prepared, tuned.CUBLAS)) < 1e-3
        assert relative_error(found, apart(library, plain, prepared, None)) < 2e-2


@pytest.mark.parametrize("fmt", SECOND[:3], ids=str)
def test_integer_products_are_the_references(fmt: Format, library: KernelLibrary) -> None:
    """But for the exponential, by which a bfloat16 may round the other way."""
    gated, _ = random_gates(fmt, 200, 1152, 4, device="cuda")
    weight = ReferenceWeight.of(moved(gated, "cpu"))
    for tokens in TOKENS:
        x = random_input(tokens, 1152, tokens, torch.bfloat16, device="cuda")
        prepared = prepared_on_gpu(library, gated.kernels.row, None, x)
        found, expected = product(library, gated, prepared, None).cpu(), reference.multiply(weight, on_cpu(prepared))
        different = differing(found, expected)
        assert int(different.sum()) <= 1 + different.numel() // 1000
        assert relative_error(found, expected) < 1e-3


@pytest.mark.parametrize("fmt", [Format(), Format(w_group=128, a_bits=16)], ids=str)
def test_graphs_and_compiled_modules_give_the_same(fmt: Format) -> None:
    check_graphs_and_compiled(QuantLinear(random_gates(fmt, 4096, 4096, 5, device="cuda")[0]))
