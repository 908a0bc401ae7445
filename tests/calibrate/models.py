"""A small random model that remembers what it was given, and a tokenizer of single characters."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from qspec.models.decoder import Decoder
from qspec.models.dream import DREAM
from qspec.models.family import Family
from qspec.models.llada import LLADA
from tests.models import dream_layout, layout
from tests.models.layout import TINY

MASK: int = TINY["mask_token_id"]


TABLE: dict[str, tuple[Family, dict[str, Any], Any]] = {
    "llada": (LLADA, TINY, layout),
    "dream": (DREAM, dream_layout.TINY_DREAM, dream_layout),
}


class Letters:
    """One token a character; a .. z are 2 .. 27."""

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        assert not add_special_tokens
        return [ord(c) - ord("a") + 2 for c in text]


class Remembers(Decoder):
    """seen: every row of ids that the model computed with, in order. It never predicts the mask token."""

    def __init__(self, family: Literal["llada", "dream"] = "llada") -> None:
        own, config, module = TABLE[family]
        super().__init__(own, own.shape(config))
        weights = module.random_weights(config, seed=4)
        self.load_state_dict({name: torch.from_numpy(w).float() for name, w in weights.items()})
        self.requires_grad_(False)
        self.seen: list[tuple[int, ...]] = []

    def through(self, input_ids: Tensor, *others: Any) -> Tensor:
        self.seen += [tuple(row) for row in input_ids.tolist()]
        return super().through(input_ids, *others)

    def finish(self, x: Tensor) -> Tensor:
        logits = super().finish(x)
        logits[..., self.shape.mask_token] = -100.0
        return logits
