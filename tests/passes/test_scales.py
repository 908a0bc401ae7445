"""Scales that their stored dtype does not hold: powers of two move between a weight and what produces its input."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from qspec import quantize
from qspec.errors import NumericsError
from qspec.language.spec import Pass
from qspec.numerics import sqnr_db
from qspec.passes.block import Block, producer_of
from qspec.passes.outer_layers import OuterLayers
from qspec.passes.parameters import Awq, ClipSearch, Gptq, Rtn
from tests.passes.conftest import scheme

GROUPED = scheme("int4", None, 32)
SITES = {
    "attention.input": ("attention.q", "attention.k", "attention.v"),
    "attention.mixed": ("attention.o",),
    "mlp.input": ("mlp.gate", "mlp.up"),
    "mlp.gated": ("mlp.down",),
}


def divided(block: Block, site: str, k: float) -> Block:
    """The same function: what produces the site's input times k, its readers over k."""
    for part in SITES[site]:
        block.linears[part].weight /= k
    name = producer_of(site, block.shape)
    producer = block.linears.get(name)
    if producer is None:
        block._set_gain(name, block._gain(name) * k)
    else:
        producer.weight *= k
        producer.bias = None if producer.bias is None else producer.bias * k
    return block


def output(block: Block) -> Tensor:
    with torch.no_grad():
        return torch.cat(
            [block.module(x, batch.context) for x, batch in block.observed.stream.inputs(block.observed.in_basis)]
        )


def quantized(block: Block, *passes: Pass) -> Block:
    for one in passes:
        uses = tuple(block.linears.values())
        block.fit_scales(uses)
        one.rewrite(block, uses)
    return block


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("passes", [(Rtn(),), (Gptq(),), (Awq(tokens=64), Rtn()), (ClipSearch(), Rtn())], ids=str)
def test_float16_scales_survive_any_split_between_weights_and_inputs(
    make_block: Callable[..., Block], site: str, passes: tuple[Pass, ...]
) -> None:
    """Times 2^20 nothing changes at all, times 1e6 or 1e-6 no more than rounding; float16 scales end at 6e-8."""
    exact = output(make_block(GROUPED))
    plain = quantized(make_block(GROUPED), *passes)
    reached = sqnr_db(exact, output(plain))
    moved = quantized(divided(make_block(GROUPED), site, 2.0**20), *passes)
    for part, linear in plain.linears.items():
        assert linear.quantized is not None
        other = moved.linears[part].quantized
        assert other is not None
        assert torch.equal(linear.quantized.codes, other.codes), part
    for k in (1e6, 1e-6):
        block = quantized(divided(make_block(GROUPED), site, k), *passes)
        assert sqnr_db(exact, output(block)) == pytest.approx(reached, abs=1.5)


def test_a_layer_that_no_power_of_two_fits_is_named(make_block: Callable[..., Block]) -> None:
    """q and k read one input: one too small for float16 and one that leaves no room."""
    block = make_block(GROUPED)
    block.linears["attention.q"].weight *= 2.0**-24
    block.linears["attention.k"].weight *= 2.0**20
    with pytest.raises(NumericsError, match="float16") as error:
        quantized(block, Rtn())
    assert error.value.where == "blocks[0].attention.q"
    assert "per channel" in str(error.value.hint)


def test_weights_that_fit_are_left_alone(make_block: Callable[..., Block]) -> None:
    block, other = make_block(GROUPED), make_block(GROUPED)
    block.fit_scales(tuple(block.linears.values()))
    for part, linear in block.linears.items():
        assert torch.equal(linear.weight, other.linears[part].weight)


def test_a_kept_linear_moves_with_those_that_read_its_input(make_block: Callable[..., Block]) -> None:
    """A pass may be given kept linears, as QuaRot is: k's scales are moved, q's would not fit but it has none."""
    block = divided(make_block(GROUPED), "attention.input", 2.0**20)
    block.linears["attention.q"].scheme = None
    block.linears["attention.q"].weight *= 2.0**-40
    before, weight = output(block), block.linears["attention.q"].weight
    block.fit_scales(tuple(block.linears.values()))
    moved = block.linears["attention.q"].weight / weight
    assert bool((moved == moved[0, 0]).all())
    assert float(moved[0, 0]) >= 2.0**16
    assert torch.equal(output(block), before)


def test_what_a_quantized_layer_produces_is_not_moved(make_block: Callable[..., Block]) -> None:
    """v is codes already, so that o cannot give it a power of two: an error that names o."""
    block = divided(make_block(GROUPED), "attention.mixed", 2.0**30)
    Rtn().rewrite(block, (block.linears["attention.q"],))
    block.linears["attention.v"].quantized = block.linears["attention.q"].quantized
    uses = (block.linears["attention.o"],)
    block.fit_scales(uses)
    with pytest.raises(NumericsError, match="float16") as error:
        Rtn().rewrite(block, uses)
    assert error.value.where == "blocks[0].attention.o"


def test_kept_tensors_that_overflow_are_named(make_block: Callable[..., Block]) -> None:
    """bfloat16 ends at 3.39e38, float32 at 3.40e38."""
    block = make_block(GROUPED)
    block.linears["mlp.gate"].weight[0, 0] = 3.4e38
    with pytest.raises(NumericsError, match=r"3\.4e\+38, more than bfloat16 holds") as error:
        quantize.artifact_tensors(block.module, "model.blocks.0", {}, [])
    assert error.value.where == f"model.blocks.0.{block.module.paths['mlp.gate']}.weight"


def test_a_head_that_overflows_is_named() -> None:
    tensors: dict[str, Tensor] = {"head.weight": torch.full((2, 2), 3.4e38), "norm.weight": torch.full((2,), 3.4e38)}
    outer = OuterLayers.__new__(OuterLayers)
    outer.tensors = tensors
    with pytest.raises(NumericsError, match="more than bfloat16 holds") as error:
        outer.stored()
    assert error.value.where == "head.weight"
