"""SmoothQuant's scale against the paper's formula, computed by hand."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from qspec.errors import InputError
from qspec.passes.block import Block
from qspec.passes.rtn import Rtn
from qspec.passes.smooth import Smooth
from tests.passes.conftest import scheme


def test_scale_is_the_papers(make_block: Callable[..., Block]) -> None:
    block = make_block(scheme("int4", "int4"))
    peak = torch.cat([seen["mlp.input"] for seen, _ in block.inputs({"mlp.input"})]).double().abs().max(0).values
    gate, up = (block.linears[f"mlp.{n}"].weight.double().clone() for n in ("gate", "up"))
    columns = torch.maximum(gate.abs().max(0).values, up.abs().max(0).values)
    expected = peak**0.75 / columns**0.25
    gain = block.module.part("mlp.norm").weight.double().clone()
    Smooth(alpha=0.75).rewrite(block, (block.linears["mlp.gate"], block.linears["mlp.up"]))
    torch.testing.assert_close(block.linears["mlp.up"].weight.double(), up * expected, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(block.module.part("mlp.norm").weight.double(), gain / expected, rtol=1e-5, atol=1e-7)


def test_balanced_at_one_half(make_block: Callable[..., Block]) -> None:
    """alpha 0.5 makes max|X_j| equal max|W_j| in every channel."""
    block = make_block(scheme("int4", "int4"))
    down = block.linears["mlp.down"]
    Smooth(alpha=0.5).rewrite(block, (down,))
    peak = torch.cat([seen["mlp.gated"] for seen, _ in block.inputs({"mlp.gated"})]).abs().amax(0)
    torch.testing.assert_close(peak, down.weight.abs().amax(0), rtol=1e-4, atol=1e-6)


def test_quantized_producer_is_refused(make_block: Callable[..., Block]) -> None:
    block = make_block(scheme("int4", "int4"))
    Rtn().rewrite(block, (block.linears["mlp.up"],))
    with pytest.raises(InputError, match=r"blocks\[0\]\.mlp\.up, which is quantized already"):
        Smooth().rewrite(block, (block.linears["mlp.down"],))
