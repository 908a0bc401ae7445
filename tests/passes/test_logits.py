"""Smoothing, rotations and permutations over the whole stand-in, with its outliers: the logits stay what they were."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from qspec import resources
from qspec.calibrate.stream import Stream
from qspec.language.spec import Pass
from qspec.models.checkpoint import load_decoder
from qspec.passes.block import Block
from qspec.passes.rotate_duquant import RotateDuquant
from qspec.passes.smooth import Smooth
from tests.passes.conftest import scheme, unweighted

MASK_SHARES = (0.0, 0.5, 1.0)


def masked(ids: Tensor, share: float, mask: int) -> Tensor:
    keep = torch.rand(ids.shape, generator=torch.Generator().manual_seed(1)) >= share
    return torch.where(keep, ids, mask)


@pytest.mark.parametrize(
    "passes",
    [(Smooth(alpha=0.6),), (RotateDuquant(steps=32),), (Smooth(alpha=0.6), RotateDuquant(steps=32))],
    ids=["smooth", "rotate_duquant", "both"],
)
def test_logits_of_the_standin_stay(passes: tuple[Pass, ...]) -> None:
    decoder = load_decoder(resources.standin("llada"), "cpu", torch.float32)
    ids = torch.randint(5, 300, (4, 48), generator=torch.Generator().manual_seed(0))
    inputs = [masked(ids, share, decoder.shape.mask_token) for share in MASK_SHARES]
    with torch.no_grad():
        before = [decoder(x).logits.double() for x in inputs]
        stream = Stream.start(decoder, unweighted(inputs[1]), 2)
        entries = decoder.family.modules(decoder.shape)
        for index, module in enumerate(decoder.blocks):
            parts = {e.role.part: (e, scheme("int4", "int4")) for e in entries if e.role.block == index}
            block = Block(index, decoder.shape, module, parts, stream, seed=0)
            for chosen in passes:
                chosen.rewrite(block, tuple(block.linears.values()))
            stream.advance(module)
        after = [decoder(x).logits.double() for x in inputs]
    for one, other in zip(before, after, strict=True):
        assert (other - one).norm() / one.norm() < 1e-4
