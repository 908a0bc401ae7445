"""Passes that must leave the function alone do, in float32."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from qspec.language.spec import Pass
from qspec.passes import available
from qspec.passes.block import Block
from qspec.passes.parameters import RotateDuquant, Smooth
from tests.passes.conftest import scheme

# The block sizes of the small test model; everything else is a pass' default.
PARAMETERS: dict[str, Pass] = {"rotate_duquant": RotateDuquant(block=16, steps=12)}
PRESERVING = [name for name, cls in available().items() if not cls.quantizes]


def outputs(block: Block) -> Tensor:
    """Of every calibration row, in the basis that the checkpoint has."""
    with torch.no_grad():
        found = torch.cat(
            [block.module(x, batch.context) for x, batch in block.observed.stream.inputs(block.observed.in_basis)]
        )
    return (
        found @ block.observed.stream.basis.T
        if block.observed.stream.basis is not None and block.observed.in_basis
        else found
    )


@pytest.mark.parametrize("name", PRESERVING)
def test_function_is_preserved(name: str, make_block: Callable[..., Block]) -> None:
    basis = torch.linalg.qr(torch.randn(64, 64, generator=torch.Generator().manual_seed(4))).Q
    block = make_block(scheme("int3", "int4"), basis=basis)
    before, weights = outputs(block), block.linears["attention.q"].weight.clone()
    chosen = PARAMETERS.get(name, available()[name]())
    chosen.rewrite(block, tuple(block.linears.values()))
    assert (outputs(block) - before).norm() / before.norm() < 1e-5
    changed = block.linears["attention.q"]
    assert changed.clip is not None or not torch.equal(changed.weight, weights)


def test_smooth_then_rotate_preserves(make_block: Callable[..., Block]) -> None:
    block = make_block(scheme("int4", "int4"))
    before = outputs(block)
    uses = tuple(block.linears.values())
    Smooth(alpha=0.7).rewrite(block, uses)
    RotateDuquant(block=32, steps=5).rewrite(block, uses)
    assert (outputs(block) - before).norm() / before.norm() < 1e-5


def test_smoothing_one_linear_keeps_its_neighbours_right(make_block: Callable[..., Block]) -> None:
    block = make_block(scheme("int4", "int4"))
    before = outputs(block)
    Smooth(alpha=0.5).rewrite(block, (block.linears["attention.q"],))
    assert (outputs(block) - before).norm() / before.norm() < 1e-5
