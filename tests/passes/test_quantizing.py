"""Every quantizing pass, in every format: no worse than rounding to nearest on its own objective."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import pytest

from qspec.passes import available
from qspec.passes.block import Block
from qspec.passes.parameters import Rtn
from tests.passes.conftest import SHAPE, scheme

QUANTIZING = [name for name, cls in available().items() if cls.quantizes and name != "rtn"]
FORMATS = list(product(range(2, 9), (True, False), (None, 16, 32)))


def loss(block: Block, part: str, site: str, paired: bool) -> float:
    """sum_t ||W x_t - W^ x_t||^2 or, where the pass follows the unquantized model, sum_t ||W x_fp,t - W^ x_t||^2."""
    linear = block.linears[part]
    total = 0.0
    for x, exact, _ in block.observed.paired_inputs(site):
        wanted = (exact if paired else x).double() @ linear.weight.double().T
        total += float((wanted - x.double() @ linear.rounded_weight().double().T).square().sum())
    return total


@pytest.mark.parametrize(("bits", "symmetric", "group"), FORMATS)
@pytest.mark.parametrize("name", QUANTIZING)
def test_no_worse_than_rounding(
    name: str, bits: int, symmetric: bool, group: int | None, make_block: Callable[..., Block]
) -> None:
    block = make_block(scheme(f"int{bits}", None, group, symmetric))
    for batch in block.observed.stream.batches:  # what blocks before it did to its input
        batch.x = batch.x * 1.02
    part, site = "mlp.down", "mlp.gated"
    cls, linear, found = available()[name], block.linears[part], {}
    for chosen in (Rtn(), cls()):
        chosen.rewrite(block, (linear,))
        assert linear.quantized is not None
        codes = linear.quantized.codes
        assert -(2 ** (bits - 1)) <= int(codes.min()) < int(codes.max()) < 2 ** (bits - 1)
        assert linear.quantized.scale.shape == (SHAPE.width, SHAPE.ffn // (group or SHAPE.ffn))
        assert (linear.quantized.zero is None) == symmetric
        found[type(chosen)] = loss(block, part, site, cls.follows_exact)
        linear.quantized = None
    assert found[cls] < found[Rtn]
