"""Random numbers of the samplers: each a function of what it is for, and of nothing that was drawn before.

A number is a hash of (seed, purpose, step, row, place) or, of a token, of these and its id, by the finalizer of
SplitMix64 (Steele et al., OOPSLA 2014): it depends neither on the device nor on which rows and places are computed
together, and a captured step draws it from the numbers of its step that it is given.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

Purpose = Literal["token", "place"]  # which token a place gets, and whether or when it does
STEP = 0x9E3779B97F4A7C15 - (1 << 64)  # SplitMix64's, as int64
FACTORS = (0xBF58476D1CE4E5B9 - (1 << 64), 0x94D049BB133111EB - (1 << 64))


def uniform(
    seed: Tensor, step: Tensor, rows: Tensor, places: Tensor, purpose: Purpose, count: int | None = None
) -> Tensor:
    """u ~ U(0, 1), float64 [b, n], of the places int64 [b, n]; or [b, n, count], one for each of `count` tokens.

    seed, step: int64 []. rows: int64 [b].
    """
    key = _follow(_mix(seed.clone()), torch.full_like(seed, get_args(Purpose).index(purpose)))
    key = _follow(_follow(_follow(key, step), rows.unsqueeze(1)), places)
    if count is not None:
        key = _follow(key.unsqueeze(-1), torch.arange(count, device=key.device))
    return _shifted(key, 12).double().add_(0.5).mul_(2.0**-52)  # neither 0 nor 1: 53 bits are exact


def _follow(key: Tensor, number: Tensor) -> Tensor:
    """The state of a generator that started at `key`, mixed, `number` + 1 steps later; the two broadcast."""
    return _mix((number + 1) * STEP + key)


def _mix(z: Tensor) -> Tensor:
    """Every bit of z int64 depends on all others; in place. Products wrap around, shifts bring in zeros."""
    for shift, factor in zip((30, 27), FACTORS, strict=True):
        z.bitwise_xor_(_shifted(z, shift)).mul_(factor)
    return z.bitwise_xor_(_shifted(z, 31))


def _shifted(z: Tensor, places: int) -> Tensor:
    return (z >> places).bitwise_and_((1 << (64 - places)) - 1)
