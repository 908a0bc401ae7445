"""The samplers' random numbers by whole numbers of Python: SplitMix64 (Steele et al., OOPSLA 2014, figure 17)."""

from __future__ import annotations

BITS = (1 << 64) - 1
GAMMA = 0x9E3779B97F4A7C15


def mix64(z: int) -> int:
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & BITS
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB & BITS
    return z ^ (z >> 31)


def output(state: int, n: int) -> int:
    """The generator's (n + 1)-th output from a state."""
    return mix64(state + (n + 1) * GAMMA & BITS)


def uniform(seed: int, purpose: int, step: int, row: int, place: int, token: int | None = None) -> float:
    """u in (0, 1). purpose: 0 for which token a place gets, 1 for whether or when it does."""
    found = output(seed, place + (row << 20) + (step << 40) + (purpose << 60))
    if token is not None:
        found = output(found, token)
    return ((found >> 12) + 0.5) / 2**52
