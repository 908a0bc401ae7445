"""Products of float32: nothing that is judged or inverted depends on the precision that a caller, or a GPU, has set.

TF32 is emulated (`tests.tf32`), a GPU's bfloat16 stream is one on the CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch

from qspec import hadamard, precision, quantize
from qspec.errors import NumericsError
from qspec.passes.block import Block
from qspec.passes.parameters import Quarot
from qspec.passes.statistics import weighted_product
from tests.passes.conftest import SHAPE, scheme
from tests.tf32 import EmulatedTf32, cut, with_tf32


@pytest.fixture(params=["highest", "high", "medium"])
def caller(request: pytest.FixtureRequest) -> Iterator[str]:
    """What whoever calls us has set."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(request.param)
    yield request.param
    torch.set_float32_matmul_precision(before)


def backends() -> tuple[str, str]:
    return torch.backends.cuda.matmul.fp32_precision, torch.backends.mkldnn.matmul.fp32_precision


def test_the_callers_precision_comes_back(caller: str) -> None:
    with precision.exact_products():
        assert torch.get_float32_matmul_precision() == "highest"
        with precision.fast_products():
            assert torch.get_float32_matmul_precision() == "high"
        assert torch.get_float32_matmul_precision() == "highest"
        assert backends() == ("ieee", "ieee")
    assert torch.get_float32_matmul_precision() == caller


def test_backends_that_were_set_one_by_one_come_back() -> None:
    """torch then refuses to name the precision as a whole."""
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    try:
        with precision.fast_products(), precision.exact_products():
            assert backends() == ("ieee", "ieee")
        assert backends()[0] == "tf32"
    finally:
        torch.set_float32_matmul_precision("highest")


def test_the_emulation_is_tf32() -> None:
    """1 + 2^-10 is a TF32 number, 1 + 2^-11 lies between two and goes to the even one, 1 + 3 * 2^-11 likewise."""
    x = torch.tensor([1 + 2**-10, 1 + 2**-11, 1 + 3 * 2**-11, -3.0, 1e30 * (1 + 2**-12)])
    assert cut(x).tolist() == [1 + 2**-10, 1.0, 1 + 2**-9, -3.0, cut(x)[4].item()]
    a = torch.tensor([[1 + 2**-11, 1.0]])
    with precision.fast_products():
        assert with_tf32(lambda: (a @ a.T).item()) == 2.0
    assert with_tf32(lambda: (a @ a.T).item()) == (a @ a.T).item() > 2.0


def as_on_a_gpu(make_block: Callable[..., Block]) -> Block:
    """A block whose residual stream is rotated and in bfloat16."""
    signs = torch.randint(0, 2, (SHAPE.width, 1), generator=torch.Generator().manual_seed(3)) * 2 - 1
    block = make_block(scheme("int4", "int4"), basis=(signs * hadamard.orthogonal(SHAPE.width)).float())
    for batch in block.observed.stream.batches:
        batch.x = batch.x.bfloat16()
    return block


@pytest.mark.usefixtures("caller")
def test_quarot_preserves_the_function_in_a_bfloat16_stream(make_block: Callable[..., Block]) -> None:
    """Rounding x to bfloat16 on the way back from the rotated basis alone changed the output by 1.1e-3."""
    block = as_on_a_gpu(make_block)
    with EmulatedTf32() as products, quantize._preserved(block, "quarot"):
        Quarot().rewrite(block, tuple(block.linears.values()))
    assert products.cut == 0
    assert products.whole > 20


@pytest.mark.usefixtures("caller")
def test_the_check_computes_the_same_under_every_setting(make_block: Callable[..., Block]) -> None:
    block = as_on_a_gpu(make_block)
    with precision.exact_products():
        expected = block.observed.additions()
    for found, wanted in zip(with_tf32(block.observed.additions), expected, strict=True):
        assert torch.equal(found, wanted)


@pytest.mark.usefixtures("caller")
def test_hessians_are_whole_under_every_setting(make_block: Callable[..., Block]) -> None:
    block = as_on_a_gpu(make_block)
    x = torch.randn(40, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(with_tf32(lambda: weighted_product(x, x, torch.ones(40))), x.T @ x)
    with EmulatedTf32() as products:
        block.observed.hessian("mlp.gated", None)
    assert products.whole == 2 * len(block.observed.stream.batches)  # into the stream's basis and X^T X
    assert products.cut > 0  # forward passes


def test_a_change_that_the_residual_stream_would_hide_is_found(make_block: Callable[..., Block]) -> None:
    """One percent of what attention adds, beside a stream ten thousand times as large."""
    block = make_block(scheme("int4", "int4"))
    for batch in block.observed.stream.batches:
        batch.x = batch.x * 1e4
    linear = block.linears["attention.o"]
    wrong = pytest.raises(NumericsError, match=r"blocks?.*by 1\.0e-02.*\n  where: blocks\[0\]\.attention")
    with wrong, quantize._preserved(block, "wrong"):
        linear.weight = linear.weight * 1.01


def test_a_block_that_adds_nothing_is_preserved(make_block: Callable[..., Block]) -> None:
    block = make_block(scheme("int4", "int4"))
    linear = block.linears["attention.o"]
    linear.weight = torch.zeros_like(linear.weight)
    with quantize._preserved(block, "nothing"):
        pass
    wrong = pytest.raises(NumericsError, match="by what was zero before")
    with wrong, quantize._preserved(block, "wrong"):
        linear.weight = torch.ones_like(linear.weight)
