"""Calibration activations on their way through the model, one block at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from qspec.models.decoder import AttentionContext, Decoder, DecoderBlock


@dataclass(frozen=True)
class Stream:
    """Hidden states at a block's input, in batches [batch, tokens, width], and what attention needs beside them."""

    batches: tuple[Tensor, ...]
    contexts: tuple[AttentionContext, ...]

    def __len__(self) -> int:
        return len(self.batches)

    @classmethod
    def start(cls, decoder: Decoder, ids: Tensor, batch: int) -> Stream:
        """The embedded calibration tokens ids [samples, length]."""
        chunks = torch.split(ids, batch)
        with torch.no_grad():
            return cls(
                tuple(decoder.embed(chunk) for chunk in chunks),
                tuple(decoder.context(chunk, None) for chunk in chunks),
            )

    def outputs(self, block: DecoderBlock) -> Iterator[Tensor]:
        """The block's outputs, batch by batch."""
        with torch.no_grad():
            for x, context in zip(self.batches, self.contexts, strict=True):
                yield block(x, context)

    def through(self, block: DecoderBlock) -> Stream:
        """The stream at the next block's input."""
        return Stream(tuple(self.outputs(block)), self.contexts)
