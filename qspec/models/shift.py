"""Which position's hidden state predicts a token: the one place that knows of shifted logits."""

from __future__ import annotations

import torch
from torch import Tensor

from qspec.models.family import DecoderShape


def predictors(hidden: Tensor, shape: DecoderShape, attention_mask: Tensor | None = None) -> Tensor:
    """Hidden states [b, t, d] after the last block -> [b, t, d] whose logits predict the t tokens.

    They are the same, except in a shifted model (Dream, arXiv 2508.15487): a token is predicted from the one
    before it, and the first token of a row, which has none before it, from itself. attention_mask [b, t]:
    nonzero = real; padding, wherever it stands, is passed over, so that a padded row predicts what the row
    alone would.
    """
    if not shape.shift:
        return hidden
    if attention_mask is None:
        return torch.cat((hidden[:, :1], hidden[:, :-1]), dim=1)
    source = sources(shape, attention_mask.to(hidden.device) != 0)
    return hidden.gather(1, source.unsqueeze(-1).expand(-1, -1, hidden.shape[2]))


def noised_predictors(hidden: Tensor, shape: DecoderShape, real: Tensor) -> Tensor:
    """Of a block-causal model, x [b, 2 t, d] of a noised and a clean text -> [b, t, d] that predict the noised one.

    Where a shifted model predicts the first token of a block from the last one before it, that is a clean one, as while
    it generates; the first token of a text is predicted from itself. real [b, t]: nonzero = real.
    """
    assert shape.block is not None
    noised, clean = hidden.chunk(2, dim=1)
    if not shape.shift:
        return noised
    place = (real != 0).cumsum(-1) - 1
    first = ((place % shape.block == 0) & (place > 0)).to(hidden.device).unsqueeze(-1)
    return torch.where(first, predictors(clean, shape, real), predictors(noised, shape, real))


def sources(shape: DecoderShape, real: Tensor) -> Tensor:
    """For each token, the place of the hidden state that predicts it, int64 [b, t]; real bool [b, t]."""
    positions = torch.arange(real.shape[1], device=real.device)
    if not shape.shift:
        return positions.expand_as(real)
    before = torch.full(real.shape, -1, device=real.device)
    before[:, 1:] = torch.where(real, positions, -1).cummax(-1).values[:, :-1]  # the last real place before each
    return torch.where(before < 0, positions, before)
