"""The clip search against brute force over every token, in float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from qspec.errors import InputError
from qspec.formats import Scheme
from qspec.passes.block import Block
from qspec.passes.parameters import ClipSearch, Gptq, RotateDuquant, Rtn, Smooth
from tests.passes.conftest import SHAPE, scheme
from tests.passes.independent import rounded
from tests.passes.test_awq import weigh

FORMATS = {
    "w3_group_asymmetric": scheme("int3", None, 16, symmetric=False),
    "w2_group": scheme("int2", None, 32),
    "w4_channel": scheme("int4", "int4"),
}


def losses(block: Block, part: str, site: str, ratios: list[float]) -> Tensor:
    """sum_t c_t ((w - w^)_g x_tg)^2 for each ratio, row and group: [ratios, out, groups], token by token."""
    linear = block.linears[part]
    fmt = linear.formats.weights
    w = linear.weight.double()
    size = fmt.group(w.shape[1])
    total = torch.zeros(len(ratios), w.shape[0], w.shape[1] // size, dtype=torch.float64)
    for seen, tokens in block.observed.inputs({site}):
        x = (seen[site] if linear.transform is None else linear.transform.apply(seen[site])).double()
        x = x.reshape(len(x), -1, size)
        for i, ratio in enumerate(ratios):
            error = (w - rounded(linear.weight, fmt, ratio)).reshape(w.shape[0], -1, size)
            outputs = torch.einsum("tgi,ogi->tog", x, error)
            total[i] += (outputs.square() * tokens.weight.double()[:, None, None]).sum(0)
    return total


@pytest.mark.parametrize("rotated", [False, True])
@pytest.mark.parametrize("chosen", FORMATS.values(), ids=list(FORMATS))
def test_equals_brute_force(make_block: Callable[..., Block], chosen: Scheme, rotated: bool) -> None:
    block = make_block(chosen)
    weigh(block, 2)
    uses = (block.linears["mlp.up"], block.linears["mlp.down"])
    if rotated:
        RotateDuquant(block=16, steps=6).rewrite(block, uses)
    ratios = [1 - step / 20 for step in range(11)]  # 1, 0.95, .. 0.5
    ClipSearch().rewrite(block, uses)
    for part, site in (("mlp.up", "mlp.input"), ("mlp.down", "mlp.gated")):
        clip = block.linears[part].clip
        assert clip is not None
        expected = losses(block, part, site, ratios)
        found = ((1 - clip) * 20).round().long()
        torch.testing.assert_close(clip, 1 - found.float() / 20)
        own = expected.gather(0, found[None])[0]
        least = expected.min(0).values
        assert bool((own <= least * (1 + 1e-4)).all())
        assert (found == expected.argmin(0)).double().mean() > 0.98  # the rest are as good as equal
        assert float((own < 0.999 * expected[0]).double().mean()) > 0.3, "the case shows nothing: clipping helps nobody"


def test_grid_and_shrink(make_block: Callable[..., Block]) -> None:
    block = make_block(FORMATS["w2_group"])
    ClipSearch(grid=10, shrink=0.8).rewrite(block, (block.linears["mlp.gate"],))
    clip = block.linears["mlp.gate"].clip
    assert clip is not None
    steps = (clip * 10).round()
    torch.testing.assert_close(clip, steps / 10)
    assert 2 <= float(steps.min()) <= 5
    assert float(steps.max()) <= 10


@pytest.mark.parametrize("quantizer", [Rtn(), Gptq()])
def test_the_ratio_found_is_the_quantizers(make_block: Callable[..., Block], quantizer: Rtn | Gptq) -> None:
    """int2 reaches 1.4985 in scale: s = ratio * max|w| / 1.4985 of the group, in place of the scheme's own clip."""
    block = make_block(FORMATS["w2_group"])
    linear = block.linears["mlp.up"]
    ClipSearch().rewrite(block, (linear,))
    assert linear.clip is not None
    expected = (linear.weight.reshape(SHAPE.ffn, 2, 32).abs().amax(-1) * linear.clip / (1.5 * 1023 / 1024)).half()
    quantizer.rewrite(block, (linear,))
    assert linear.quantized is not None
    assert torch.equal(linear.quantized.scale, expected)


def test_weights_whose_clip_was_searched_are_not_scaled(make_block: Callable[..., Block]) -> None:
    block = make_block(FORMATS["w4_channel"])
    ClipSearch().rewrite(block, (block.linears["mlp.gate"],))
    with pytest.raises(InputError, match=r"rewrites blocks\[0\]\.mlp\.gate, whose clip was searched already"):
        Smooth().rewrite(block, (block.linears["mlp.up"],))
    Smooth().rewrite(block, (block.linears["mlp.down"],))  # scales rows of up: no range's ratio changes
