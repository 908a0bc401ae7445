"""What a model sees in the place of tokens that it has to find: its mask token, or uniformly drawn ones."""

from __future__ import annotations

import torch
from torch import Tensor

from qspec.models.family import NO_MASK, DecoderShape


def noised(ids: Tensor, masked: Tensor, shape: DecoderShape, generator: torch.Generator) -> Tensor:
    """ids with others where masked, alike int64 and bool on the CPU. generator: draws where there is no mask token."""
    if shape.mask_token != NO_MASK:
        return ids.masked_fill(masked, shape.mask_token)
    return torch.where(masked, torch.randint(shape.vocab, ids.shape, generator=generator), ids)
