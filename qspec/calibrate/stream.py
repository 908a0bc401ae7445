"""Calibration activations on their way through the model, one block at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from qspec.precision import exact_products, fast_products

if TYPE_CHECKING:
    from qspec.calibrate.tokens import CalibrationTokens
    from qspec.models.decoder import Decoder
    from qspec.models.decoder_block import DecoderBlock
    from qspec.models.operations import AttentionContext


@dataclass
class CalibrationBatch:
    """Some rows of the calibration tokens, at a block's input.

    x: [b, t, width], hidden states as the model computes them whose earlier blocks are quantized. exact: the same of
    the unquantized model, None where no pass asks for it. masked: bool [b, t], where the model sees the mask token.
    weight: float32 [b, t], what a token counts for in statistics.
    """

    x: Tensor
    exact: Tensor | None
    context: AttentionContext
    masked: Tensor
    weight: Tensor


@dataclass(frozen=True)
class Rotated:
    """A basis of the residual stream: Q orthogonal float32 [width, width], and the embedding [vocab, width] in it."""

    basis: Tensor
    embedding: Tensor


class Stream:
    """All calibration rows at the input of one block; `advance` takes them through it.

    basis: orthogonal float32 [width, width] Q, where the residual stream was rotated: x holds h Q, `exact` holds h.
    """

    def __init__(self, batches: list[CalibrationBatch], basis: Tensor | None = None) -> None:
        self.batches = batches
        self.basis = basis

    @classmethod
    def start(
        cls,
        decoder: Decoder,
        tokens: CalibrationTokens,
        rows: int,
        device: torch.device | str = "cpu",
        *,
        exact: bool = False,
        rotated: Rotated | None = None,
    ) -> Stream:
        """The embedded tokens, `rows` of them in a batch, on a device.

        decoder: has the checkpoint's own embedding. rotated: the embedding that will be stored instead, if another.
        exact: also follow the unquantized model.
        """
        batches = []
        with torch.no_grad():
            for ids, masked, weight in zip(
                *(torch.split(t, rows) for t in (tokens.ids, tokens.masked, tokens.weight)), strict=True
            ):
                own = decoder.embed_rows(ids.to(decoder.device)).to(device)
                x = own if rotated is None else rotated.embedding[ids].to(device, own.dtype)
                context = decoder.calibration_context(ids.to(device))
                batches.append(
                    CalibrationBatch(x, own if exact else None, context, masked.to(device), weight.to(device))
                )
        return cls(batches, None if rotated is None else rotated.basis.to(device))

    def inputs(self, in_basis: bool) -> Iterator[tuple[Tensor, CalibrationBatch]]:
        """Each batch's x for a block that was rotated into the stream's basis, or for one that was not (yet)."""
        back = None if in_basis or self.basis is None else self.basis.T
        for batch in self.batches:
            yield _times(batch.x, back), batch

    def exact_inputs(self, in_basis: bool) -> Iterator[tuple[Tensor, CalibrationBatch]]:
        """The same for what the unquantized model computes."""
        forth = self.basis if in_basis else None
        for batch in self.batches:
            assert batch.exact is not None
            yield _times(batch.exact, forth), batch

    @property
    def device(self) -> torch.device:
        return self.batches[0].x.device

    @property
    def follows_exact(self) -> bool:
        return self.batches[0].exact is not None

    def advance(self, block: DecoderBlock, exact: list[Tensor] | None = None) -> None:
        """To the next block's input, in place. block: quantized, in the stream's basis. exact: of `exact_outputs`."""
        with torch.no_grad(), fast_products():
            for batch in self.batches:
                batch.x = block(batch.x, batch.context)
        if exact is not None:
            for batch, state in zip(self.batches, exact, strict=True):
                batch.exact = state

    def exact_outputs(self, block: DecoderBlock) -> list[Tensor] | None:
        """What the unquantized model computes at the next block's input. block: as the checkpoint has it."""
        if not self.follows_exact:
            return None
        with torch.no_grad(), fast_products():
            return [block(batch.exact, batch.context) for batch in self.batches]


def _times(x: Tensor, rotation: Tensor | None) -> Tensor:
    """x [b, t, d] times a rotation [d, d] in float32, as which it stays; x itself without one.

    Rounded to a bfloat16 stream's dtype once more, x would lose 2^-9 of itself to a change of basis, which changes
    nothing.
    """
    if rotation is None:
        return x
    with exact_products():
        return x.float() @ rotation
