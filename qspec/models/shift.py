"""Which position's hidden state predicts a token: the one place that knows of shifted logits."""

from __future__ import annotations

import torch
from torch import Tensor

from qspec.models.family import DecoderShape


def predictors(hidden: Tensor, shape: DecoderShape, attention_mask: Tensor | None = None) -> Tensor:
    """Hidden states [b, t, d] after the last block -> [b, t, d] whose logits predict the token at each position.

    They are the same, except in a shifted model (Dream, arXiv 2508.15487): a token is predicted from the one
    before it, and the first token of a row, which has none before it, from itself. attention_mask [b, t]:
    nonzero = real; padding, wherever it stands, is passed over, so that a padded row predicts what the row
    alone would.
    """
    if not shape.shift:
        return hidden
    if attention_mask is None:
        return torch.cat((hidden[:, :1], hidden[:, :-1]), dim=1)
    places = torch.arange(hidden.shape[1], device=hidden.device)
    real = torch.where(attention_mask.to(hidden.device) != 0, places, -1)
    before = torch.full_like(real, -1)
    before[:, 1:] = real.cummax(-1).values[:, :-1]  # the last real place before each
    source = torch.where(before < 0, places, before)
    return hidden.gather(1, source.unsqueeze(-1).expand_as(hidden))
