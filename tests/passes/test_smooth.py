"""SmoothQuant's scale against the paper's formula, computed by hand."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from qspec.errors import InputError
from qspec.formats import Scheme
from qspec.passes.block import Block
from qspec.passes.parameters import Rtn, Smooth
from tests.passes.conftest import scheme
from tests.passes.independent import Copy, rounded, rounded_tokens
from tests.passes.test_awq import weigh


def test_scale_is_the_papers(make_block: Callable[..., Block]) -> None:
    block = make_block(scheme("int4", "int4"))
    peak = (
        torch.cat([seen["mlp.input"] for seen, _ in block.observed.inputs({"mlp.input"})]).double().abs().max(0).values
    )
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
    peak = torch.cat([seen["mlp.gated"] for seen, _ in block.observed.inputs({"mlp.gated"})]).abs().amax(0)
    torch.testing.assert_close(peak, down.weight.abs().amax(0), rtol=1e-4, atol=1e-6)


def test_quantized_producer_is_refused(make_block: Callable[..., Block]) -> None:
    block = make_block(scheme("int4", "int4"))
    Rtn().rewrite(block, (block.linears["mlp.up"],))
    with pytest.raises(InputError, match=r"blocks\[0\]\.mlp\.up, which is quantized already"):
        Smooth().rewrite(block, (block.linears["mlp.down"],))


SITES = {"mlp.input": ("mlp.gate", "mlp.up"), "attention.mixed": ("attention.o",), "mlp.gated": ("mlp.down",)}
FORMATS = {
    "w4a6": scheme("int4", "int6"),  # with 4 bits a token's peak lies at a tie, which float64 sees elsewhere
    "w3a8_group": scheme("int3", "int8", 16, symmetric=False),
    "w4a16": scheme("int4", None, 32),
}


@pytest.mark.parametrize("chosen", FORMATS.values(), ids=list(FORMATS))
@pytest.mark.parametrize("site", SITES)
def test_search_takes_the_best_alpha(make_block: Callable[..., Block], site: str, chosen: Scheme) -> None:
    """Against every alpha of the grid, with inputs, scales and rounding computed apart, in float64."""
    block = make_block(chosen)
    weigh(block, 3)
    copy, parts = Copy.of(block), SITES[site]
    batches = block.observed.stream.batches
    x = torch.cat([copy.inputs(batch.x.double())[site].flatten(0, 1) for batch in batches])
    c = torch.cat([batch.weight.double().flatten() for batch in batches])
    x, c = x[c > 0], c[c > 0]
    weights = [copy.weight[part] for part in parts]
    columns = torch.cat(weights).abs().amax(0)
    errors = {}
    for step in range(6, 20):
        s = x.abs().amax(0) ** (step / 20) / columns ** (1 - step / 20)
        if site == "attention.mixed":
            s = torch.stack([s.reshape(2, 2, 16).amax(1)] * 2, dim=1).reshape(-1)
        rows = rounded_tokens(x / s, chosen.activations)
        outputs = [x @ w.T - rows @ rounded((w * s).float(), chosen.weights).T for w in weights]
        errors[step / 20] = float(sum((y.square().sum(1) * c).sum() for y in outputs)), s
    alpha = min(errors, key=lambda a: errors[a][0])
    ranked = sorted(error for error, _ in errors.values())
    assert ranked[1] > (1 + 1e-4) * ranked[0], "the case shows nothing: two values are equally good"
    assert ranked[-1] > 1.2 * ranked[0], "the case shows nothing: all values are alike"
    before = block.linears[parts[0]].weight.double().clone()
    Smooth(alpha="search").rewrite(block, tuple(block.linears[part] for part in parts))
    after = block.linears[parts[0]].weight.double()
    torch.testing.assert_close(after, before * errors[alpha][1], rtol=1e-4, atol=1e-9)
