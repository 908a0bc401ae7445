"""Random numbers of the samplers: each a function of what it is for, and of nothing that was drawn before.

SplitMix64 (Steele et al., OOPSLA 2014) gives its n-th output without those before. A place's number is the n-th of the
generator that starts at the seed, with n made of purpose, step, row and place; those of its tokens are the outputs of a
generator that starts at that number. So they depend neither on the device nor on which rows and places are computed
together, and a captured step draws them from the numbers of its step that it is given.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

Purpose = Literal["token", "place"]  # which token a place gets, and whether or when it does
LIMIT = 1 << 20  # steps, rows and places are fewer
GAMMA = 0x9E3779B97F4A7C15 - (1 << 64)  # SplitMix64's, as int64
FACTORS = (0xBF58476D1CE4E5B9 - (1 << 64), 0x94D049BB133111EB - (1 << 64))


def uniform(
    seed: Tensor, step: Tensor, rows: Tensor, places: Tensor, purpose: Purpose, count: int | None = None
) -> Tensor:
    """u ~ U(0, 1), float64 [b, n], of the places int64 [b, n]; or [b, n, count], one for each of `count` tokens.

    seed, step: int64 []. rows: int64 [b].
    """
    first = (step + get_args(Purpose).index(purpose) * LIMIT) * LIMIT
    found = _output(seed, (first + rows.unsqueeze(1)) * LIMIT + places)
    if count is not None:
        found = _output(found.unsqueeze(-1), torch.arange(count, device=found.device))
    return _shifted(found, 12).double().add_(0.5).mul_(2.0**-52)  # neither 0 nor 1: 53 bits are exact


def _output(start: Tensor, n: Tensor) -> Tensor:
    """SplitMix64's output n = 0, 1, ... from a state, both int64; products wrap around, shifts bring in zeros."""
    z = (n + 1) * GAMMA + start
    for shift, factor in zip((30, 27), FACTORS, strict=True):
        z.bitwise_xor_(_shifted(z, shift)).mul_(factor)
    return z.bitwise_xor_(_shifted(z, 31))


def _shifted(z: Tensor, places: int) -> Tensor:
    return (z >> places).bitwise_and_((1 << (64 - places)) - 1)
