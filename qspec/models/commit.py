"""Which masks a step of a sampler commits, and committing them: those that it is most sure of."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor


class Sure(NamedTuple):
    """What is committed beyond a step's share: of confidences c_1 >= c_2 >= ... of a row, those ahead of the first with

    c_j < limit - slack / (j + 1)
    """

    limit: float = math.inf
    slack: float = 0.0


NONE = Sure()
EVERY = Sure(-math.inf)


def commit(
    ids: Tensor, places: Tensor, tokens: Tensor, confidence: Tensor, count: Tensor, mask: int, sure: Sure = NONE
) -> tuple[Tensor, Tensor]:
    """Puts tokens in the place of the masks that `most_confident` takes.

    ids int64 [b, t], of which `places` int64 [n], each once, are decided on. tokens int64 [b, n] are offered for them,
    with a confidence [b, n], -inf where a mask is to stay. count: int64 []. mask: the id of a mask.

    Returns what was chosen, bool [b, n], and whether masks are left at these places, bool [b].
    """
    before = ids.index_select(1, places)
    chosen = most_confident(confidence.masked_fill(before != mask, -torch.inf), count, sure)
    after = torch.where(chosen, tokens, before)
    ids.index_copy_(1, places, after)
    return chosen, (after == mask).any(1)


def most_confident(confidence: Tensor, count: int | Tensor, sure: Sure = NONE) -> Tensor:
    """bool, like confidence [b, n]: the `count` largest of each row and those that are sure, but none that is -inf.

    Of equals the first come first, on every device: `topk` would take any of them.
    """
    values, positions = confidence.sort(dim=-1, descending=True, stable=True)
    rank = torch.arange(values.shape[-1], device=values.device)
    taken = rank < count
    if sure != NONE:
        above = values >= sure.limit - (rank + 2).reciprocal() * sure.slack
        taken = taken | above.cumprod(-1).bool()
    return torch.zeros_like(values, dtype=torch.bool).scatter(-1, positions, taken & (values > -torch.inf))
