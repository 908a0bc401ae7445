"""Every pass that must leave the function alone, over whole models: the logits stay what they were.

The models: LLaDA's stand-in with its outliers, and a random Dream: grouped-query attention, biases of q, k and v.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from qspec import resources
from qspec.calibrate.stream import Stream
from qspec.language.spec import Fact, Pass
from qspec.models.checkpoint import load_decoder
from qspec.models.decoder import Decoder
from qspec.models.dream import DREAM
from qspec.passes import available
from qspec.passes.block import Block
from qspec.passes.outer_layers import OuterLayers
from qspec.passes.parameters import RotateDuquant
from tests.passes.conftest import SHAPE, scheme, unweighted

MASK_SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
SMALL = replace(SHAPE, layers=2, width=256, heads=8, kv_heads=2, head_width=32, ffn=384, shift=True)

PRESERVING = {name: cls() for name, cls in available().items() if not cls.quantizes}
PRESERVING["rotate_duquant"] = RotateDuquant(steps=4)
FIRST = [name for name, one in PRESERVING.items() if not one.clears]
CHAINS = [(name,) for name in PRESERVING] + [
    (first, last) for first in FIRST for last, one in PRESERVING.items() if Fact.PLAIN_INPUT in one.clears
]


def model(name: str) -> Decoder:
    if name == "llada":
        return load_decoder(resources.standin("llada"), "cpu", torch.float32)
    torch.manual_seed(0)
    decoder = Decoder(DREAM, SMALL).requires_grad_(False)
    for parameter in decoder.parameters():
        if parameter.ndim == 1:
            parameter += 0.3 * torch.randn(parameter.shape)  # gains and biases that are not one, not small
    return decoder


def masked(ids: Tensor, share: float, mask: int) -> Tensor:
    keep = torch.rand(ids.shape, generator=torch.Generator().manual_seed(1)) >= share
    return torch.where(keep, ids, mask)


def rewrite(decoder: Decoder, passes: Iterable[Pass], ids: Tensor) -> None:
    """Runs passes over a whole model in place, calibrated on ids [rows, length], as `qspec.quantize` does."""
    names = {f"{name}.weight" for name in decoder.family.globals.values()}
    tensors = {name: t for name, t in decoder.state_dict().items() if name in names}
    outer = OuterLayers(decoder.family, decoder.shape, tensors, seed=0)
    for chosen in passes:
        chosen.rewrite_outer_layers(outer)
    stream = Stream.start(decoder, unweighted(ids), 2, rotated=outer.rotated())
    entries = decoder.family.modules(decoder.shape)
    for index, module in enumerate(decoder.blocks):
        parts = {e.role.part: (e, scheme("int4", "int4")) for e in entries if e.role.block == index}
        block = Block(index, decoder.shape, module, parts, stream, seed=0)
        for chosen in passes:
            chosen.rewrite(block, tuple(block.linears.values()))
        stream.advance(module)
    decoder.load_state_dict(outer.tensors, strict=False, assign=True)


@pytest.mark.parametrize("name", ["llada", "dream"])
@pytest.mark.parametrize("chain", CHAINS, ids="+".join)
def test_logits_stay(chain: tuple[str, ...], name: str) -> None:
    decoder = model(name)
    mask = decoder.shape.mask_token
    ids = torch.randint(3, min(300, mask if mask > 3 else 300), (2, 48), generator=torch.Generator().manual_seed(0))
    inputs = [masked(ids, share, mask) for share in MASK_SHARES]
    with torch.no_grad():
        before = [decoder(x).logits.double() for x in inputs]
        rewrite(decoder, [PRESERVING[part] for part in chain], inputs[2])
        after = [decoder(x).logits.double() for x in inputs]
    for one, other in zip(before, after, strict=True):
        assert (other - one).norm() / one.norm() < 1e-4
