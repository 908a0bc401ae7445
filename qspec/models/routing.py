"""Which experts a token goes to, and with what weights: a router's logits -> (experts, weights) of every token.

With z = h Wr^T [n, count] of the normed hidden states h [n, d], in float32 (float64 in a float64 model) whatever the
model's dtype, for a choice that one rounding can turn around:

    s = softmax(z) over all experts (SDAR, LLaDA-MoE), or sigmoid(z) of each (LLaDA2)
    c = s + bias, where the router has one
    chosen = the top_k of c, among the experts of the top_groups groups whose two largest c sum to most; or among the
        `capacity` experts whose largest c for a token of the same block is best (LLaDA2.2)
    w = s[chosen], / sum w where normalized, times scale, and times each expert's own scale where they have one
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from qspec.models.family import Experts
from qspec.models.inputs import wide

BEST_OF_GROUP = 2  # scores whose sum ranks a group
NOTHING = 1e-20  # beside a sum of weights, as the published code has it


class Routing(NamedTuple):
    """experts: int64 [n, top_k], the best first. weights: float32 [n, top_k] of their outputs."""

    experts: Tensor
    weights: Tensor


@dataclass(frozen=True)
class Pools:
    """Tokens that share their experts. of: int64 [n], the pool that each of them belongs to. count: of pools."""

    of: Tensor
    count: int


class Sorted(NamedTuple):
    """The n top_k places of a routing, token by token, put in the order of their experts.

    places: int64 [n top_k], places // top_k is the token. offsets: int64 [count + 1], where each expert's begin and
    end.
    """

    places: Tensor
    offsets: Tensor


def route(
    logits: Tensor,
    how: Experts,
    bias: Tensor | None = None,
    chosen: Tensor | None = None,
    scales: Tensor | None = None,
    pools: Pools | None = None,
) -> Routing:
    """z [n, count] -> the routing of n tokens. bias, scales: [count], of the choice and of the weights. chosen: int64
    [n, top_k], the experts where they are decided already. pools: for routers with a capacity."""
    scores = logits.softmax(-1) if how.scoring == "softmax" else logits.sigmoid()
    if chosen is None:
        chosen = _best(scores if bias is None else scores + bias, how, pools)
    weights = scores.gather(1, chosen)
    if how.normalized:
        weights = weights / (weights.sum(-1, keepdim=True) + NOTHING)
    weights = weights * how.scale
    return Routing(chosen, weights if scales is None else weights * wide(scales)[chosen])


def _best(scores: Tensor, how: Experts, pools: Pools | None) -> Tensor:
    """The top_k experts of scores [n, count], of the best groups alone, or of those that serve the token's pool."""
    if how.capacity:
        assert pools is not None
        of = pools.of[:, None].expand_as(scores)
        best = scores.new_full((pools.count, how.count), -torch.inf).scatter_reduce(0, of, scores, "amax")
        serving = torch.zeros_like(best, dtype=torch.bool).scatter_(1, best.topk(how.capacity, -1).indices, value=True)
        scores = scores.masked_fill(~serving[pools.of], -torch.inf)
    if how.groups > 1:
        grouped = scores.view(scores.shape[0], how.groups, -1)
        rank = grouped.topk(BEST_OF_GROUP, -1).values.sum(-1)
        best = torch.zeros_like(rank, dtype=torch.bool).scatter_(1, rank.topk(how.top_groups, -1).indices, value=True)
        scores = grouped.masked_fill(~best[:, :, None], -torch.inf).flatten(1)
    return scores.topk(how.top_k, -1).indices


def by_expert(experts: Tensor, count: int) -> Sorted:
    """Experts [n, top_k] in a stable order; nothing waits for the device."""
    flat = experts.flatten()
    places = flat.argsort(stable=True)
    bounds = torch.arange(count + 1, device=flat.device)
    return Sorted(places, torch.searchsorted(flat[places], bounds))
