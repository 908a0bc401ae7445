"""Which position's hidden state predicts a token: the one place that knows of shifted logits."""

from __future__ import annotations

import torch
from torch import Tensor

from qspec.models.family import DecoderShape


def predictors(hidden: Tensor, shape: DecoderShape, attention_mask: Tensor | None = None) -> Tensor:
    """Hidden states [b, t, d] after the last block -> [b, t, d] whose logits predict the token at each position.

    They are the same, except in a shifted model (Dream, arXiv 2508.15487): position i is predicted from
    i - 1, and the first token of a row, which has none before it, from itself. attention_mask [b, t]: nonzero
    = real; padding may stand on either side, and a padded row predicts what the row alone would.
    """
    if not shape.shift:
        return hidden
    before = torch.cat((hidden[:, :1], hidden[:, :-1]), dim=1)
    if attention_mask is None:
        return before
    real = attention_mask.to(hidden.device) != 0
    first = real & (real.cumsum(-1) == 1)
    return torch.where(first.unsqueeze(-1), hidden, before)
