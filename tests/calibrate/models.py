"""A small random model that remembers what it was given, and a tokenizer of single characters."""

from __future__ import annotations

import torch
from torch import Tensor

from qspec.models.decoder import Decoder
from qspec.models.llada import LLADA
from tests.models.layout import TINY, random_weights

MASK: int = TINY["mask_token_id"]


class Letters:
    """One token a character; a .. z are 2 .. 27."""

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        assert not add_special_tokens
        return [ord(c) - ord("a") + 2 for c in text]


class Remembers(Decoder):
    """seen: every row of ids that the model computed with, in order. It never predicts the mask token."""

    def __init__(self) -> None:
        super().__init__(LLADA, LLADA.shape(TINY))
        self.load_state_dict({name: torch.from_numpy(w).float() for name, w in random_weights(TINY, seed=4).items()})
        self.requires_grad_(False)
        self.seen: list[tuple[int, ...]] = []

    def hidden(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        self.seen += [tuple(row) for row in input_ids.tolist()]
        return super().hidden(input_ids, attention_mask)

    def finish(self, x: Tensor) -> Tensor:
        logits = super().finish(x)
        logits[..., MASK] = -100.0
        return logits
