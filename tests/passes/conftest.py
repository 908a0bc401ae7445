"""A small random LLaDA block with calibration data, ready for passes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from qspec.calibrate.stream import Stream
from qspec.calibrate.tokens import CalibrationTokens
from qspec.formats import NUMBER_FORMATS, Clip, Granularity, Scheme, TensorFormat
from qspec.models.decoder import Decoder
from qspec.models.family import DecoderShape
from qspec.models.llada import LLADA
from qspec.passes.block import Block

SHAPE = DecoderShape(
    layers=1,
    width=64,
    heads=4,
    kv_heads=2,
    head_width=16,
    ffn=192,
    vocab=50,
    max_length=64,
    norm_eps=1e-5,
    rope_theta=5e5,
    qkv_bias=True,
    bias=False,
    tied=False,
    shift=False,
    sampler="llada",
    mask_token=49,
    eos_token=48,
    pad_token=48,
)


def scheme(weights: str, activations: str | None, group: int | None = None, symmetric: bool = True) -> Scheme:
    granularity = Granularity("group", group) if group else Granularity("channel")
    return Scheme(
        "s",
        TensorFormat(NUMBER_FORMATS[weights], granularity, symmetric, Clip()),
        TensorFormat(NUMBER_FORMATS[activations], Granularity("token")) if activations else None,
    )


def unweighted(ids: Tensor) -> CalibrationTokens:
    """Calibration rows ids [rows, length] of which every token counts alike; the last token of the vocabulary masks."""
    masked = ids == SHAPE.mask_token
    return CalibrationTokens(ids, masked, torch.ones(ids.shape), masked.float().mean(1), ids.numel(), ids.numel())


def in_basis(stream: Stream, basis: Tensor) -> Stream:
    """The same calibration data in a residual stream that was rotated: h Q for h."""
    for batch in stream.batches:
        batch.x = batch.x @ basis
    return Stream(stream.batches, basis)


@pytest.fixture
def make_block() -> Callable[..., Block]:
    """make_block(scheme) -> a Block whose every linear has the scheme; grouped-query attention, biases, outliers.

    With a `basis` [width, width], its residual stream is to be rotated.
    """

    def make(chosen: Scheme, seed: int = 0, basis: Tensor | None = None) -> Block:
        torch.manual_seed(seed)
        decoder = Decoder(LLADA, SHAPE).requires_grad_(False)
        module = decoder.blocks[0]
        norm = module.part("attention.norm")
        norm.weight[5] = 30.0  # a normal outlier: one channel, every token
        module.part("mlp.up").weight[7] *= 40.0  # a massive one, at the down-projection's input
        entries = {e.role.part: (e, chosen) for e in LLADA.modules(SHAPE) if e.role.block == 0}
        ids = torch.randint(0, SHAPE.vocab, (6, 20), generator=torch.Generator().manual_seed(seed))
        stream = Stream.start(decoder, unweighted(ids), 2, exact=True)
        return Block(0, SHAPE, module, entries, stream if basis is None else in_basis(stream, basis), seed)

    return make
