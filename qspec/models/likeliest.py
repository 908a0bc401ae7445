"""What samplers make of logits at temperature 0: the likeliest token of a position, and how sure it is."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Measure = Literal["probability", "margin", "entropy"]  # of confidence


def likeliest(logits: Tensor, absent: Tensor | None, finite: Tensor, measure: Measure) -> tuple[Tensor, Tensor]:
    """x0 = argmax l int64 [...] of logits [..., vocab], the first of equals, and its `confidence`, float32 [...].

    absent: bool [vocab], ids that get no probability. finite: bool [], which becomes False where a logit is NaN or Inf.
    """
    logits = rated(logits, absent, finite)
    token = logits.argmax(-1)
    return token, confidence(logits.softmax(-1), token, measure)


def rated(logits: Tensor, absent: Tensor | None, finite: Tensor) -> Tensor:
    """float32 logits, in which ids that are no token have the lowest float32, whose probability is 0: with -inf a KL's
    0 (inf - inf) would be NaN."""
    logits = logits.float()
    finite.logical_and_(logits.isfinite().all())
    return logits if absent is None else logits.masked_fill(absent, torch.finfo(torch.float32).min)


def confidence(p: Tensor, token: Tensor, measure: Measure) -> Tensor:
    """float32 [...] of p [..., vocab]: p[token], what the likeliest token is ahead of the next, or sum of p log p."""
    if measure == "margin":
        first, second = p.topk(2).values.unbind(-1)
        return first - second
    if measure == "entropy":
        return (p * (p + 1e-10).log()).sum(-1)
    return p.gather(-1, token.unsqueeze(-1)).squeeze(-1)
