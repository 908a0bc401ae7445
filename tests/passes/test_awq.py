"""AWQ's scale against a brute-force grid over a block that is computed apart, in float64."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy

import pytest
import torch
from torch import Tensor

from qspec.errors import NumericsError
from qspec.formats import Scheme
from qspec.language.spec import Fact
from qspec.passes.awq import scale_of
from qspec.passes.block import Block
from qspec.passes.parameters import Awq, ClipSearch
from tests.passes.conftest import SHAPE, scheme
from tests.passes.independent import Copy, rounded

SITES = {
    "attention.input": ("attention.q", "attention.k", "attention.v"),
    "attention.mixed": ("attention.o",),
    "mlp.input": ("mlp.gate", "mlp.up"),
    "mlp.gated": ("mlp.down",),
}


def weigh(block: Block, seed: int) -> None:
    """Gives the calibration tokens weights between 0 and 2; a third of them is left out."""
    g = torch.Generator().manual_seed(seed)
    for batch in block.observed.stream.batches:
        draw = torch.rand(batch.weight.shape, generator=g)
        batch.weight = torch.where(draw < 1 / 3, 0.0, 3 * draw - 1)


def grid(block: Block, site: str, parts: tuple[str, ...]) -> list[tuple[float, Tensor]]:
    """(weighted squared error, scale) for r = 0, 0.05, .. 0.95 over every calibration token."""
    copy = Copy.of(block)
    inputs = [copy.inputs(batch.x.double())[site] for batch in block.observed.stream.batches]
    weights = [batch.weight.double()[..., None] for batch in block.observed.stream.batches]
    mean = sum((x.abs() * c).sum((0, 1)) for x, c in zip(inputs, weights, strict=True)) / sum(c.sum() for c in weights)
    if site == "attention.mixed":  # two query heads read one value head
        pairs = mean.reshape(SHAPE.kv_heads, 2, SHAPE.head_width)
        mean = torch.stack([pairs.amax(1)] * 2, dim=1).reshape(-1)
    exact = [copy.consumer(site, x) for x in inputs]
    found = []
    for step in range(20):
        s = mean ** (step / 20)
        s = s / (s.max() * s.min()) ** 0.5
        trial = deepcopy(copy)
        for part in parts:
            fmt = block.linears[part].formats.weights
            trial.weight[part] = rounded((copy.weight[part] * s).float(), fmt) / s
        outputs = [trial.consumer(site, x) for x in inputs]
        losses = [float(((y - z).square() * c).sum()) for y, z, c in zip(exact, outputs, weights, strict=True)]
        found.append((sum(losses), s))
    return found


FORMATS = {"w3_group": scheme("int3", None, 16, symmetric=False), "w7_channel": scheme("int7", None)}


@pytest.mark.parametrize("chosen", FORMATS.values(), ids=list(FORMATS))
@pytest.mark.parametrize("site", SITES)
def test_scale_is_the_best_of_a_brute_force_grid(make_block: Callable[..., Block], site: str, chosen: Scheme) -> None:
    block = make_block(chosen)
    weigh(block, 1)
    errors = grid(block, site, SITES[site])
    least, scale = min(errors, key=lambda e: e[0])
    others = sorted(error for error, _ in errors)
    assert least < 0.95 * errors[0][0], "the case shows nothing: plain rounding is as good"
    assert others[1] > (1 + 1e-4) * least, "the case shows nothing: two exponents are equally good"
    before = block.linears[SITES[site][0]].weight.double().clone()
    Awq(clip=False).rewrite(block, tuple(block.linears[part] for part in SITES[site]))
    after = block.linears[SITES[site][0]].weight.double()
    torch.testing.assert_close(after, before * scale, rtol=1e-4, atol=1e-9)


def test_linears_that_were_not_selected_stay_exact_in_the_objective(make_block: Callable[..., Block]) -> None:
    block = make_block(FORMATS["w3_group"])
    _, scale = min(grid(block, "attention.input", ("attention.v",)), key=lambda e: e[0])
    before = block.linears["attention.k"].weight.double().clone()
    Awq(clip=False).rewrite(block, (block.linears["attention.v"],))
    torch.testing.assert_close(block.linears["attention.k"].weight.double(), before * scale, rtol=1e-4, atol=1e-9)


def test_channels_that_are_never_active_stay_sane(make_block: Callable[..., Block]) -> None:
    block = make_block(FORMATS["w3_group"])
    block.module.part("mlp.norm").weight[[3, 9]] = 0.0
    up = block.linears["mlp.up"].weight.clone()
    before = sum(block.observed.additions())
    Awq().rewrite(block, tuple(block.linears.values()))
    scale = (block.linears["mlp.up"].weight / up).median(0).values
    assert bool(torch.isfinite(scale).all())
    assert float(scale.max() / scale.min()) <= 1.001e4
    assert (sum(block.observed.additions()) - before).norm() / before.norm() < 1e-5


def test_an_input_that_is_never_active_is_not_scaled() -> None:
    assert torch.equal(scale_of(torch.zeros(8), 0.5), torch.ones(8))
    scale = scale_of(torch.tensor([0.0, 1.0, 4.0]), 0.5)  # sqrt of 4e-4, 1 and 4, over sqrt(2 * 0.02)
    torch.testing.assert_close(scale, torch.tensor([0.02, 1.0, 2.0]) / 0.04**0.5)


def test_the_sample_is_bounded_and_spread(make_block: Callable[..., Block]) -> None:
    """Three batches of 40 tokens: one, two or all of them, as the site sees them."""
    block = make_block(FORMATS["w3_group"])
    whole = [seen["mlp.input"] for seen, _ in block.observed.inputs({"mlp.input"})]
    for tokens, expected in ((1, [0]), (40, [0]), (41, [0, 1]), (80, [0, 1]), (120, [0, 1, 2]), (999, [0, 1, 2])):
        found = block.observed.sampled("mlp.input", tokens)
        assert len(found) == len(expected)
        for part, index in zip(found, expected, strict=True):
            torch.testing.assert_close(part.rows[0], whole[index])
    block.observed.stream.batches[0].weight.zero_()
    (part,) = block.observed.sampled("mlp.input", 1)
    torch.testing.assert_close(part.rows[0], whole[1])


@pytest.mark.parametrize("chosen", [Awq(clip=False), ClipSearch()])
def test_errors_that_are_not_finite_stop(make_block: Callable[..., Block], chosen: Awq | ClipSearch) -> None:
    block = make_block(FORMATS["w7_channel"])
    block.linears["mlp.up"].weight *= 1e30
    with pytest.raises(NumericsError, match="NaN or Inf"):
        chosen.rewrite(block, (block.linears["mlp.up"],))


def test_q_and_k_are_not_clipped(make_block: Callable[..., Block]) -> None:
    block = make_block(FORMATS["w3_group"])
    Awq().rewrite(block, tuple(block.linears.values()))
    assert {part for part, linear in block.linears.items() if linear.clip is None} == {"attention.q", "attention.k"}
    assert Awq().ends() == {Fact.OPEN_RANGE}
    assert Awq(clip=False).ends() == set()
