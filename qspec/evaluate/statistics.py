"""What per-item results of two models say: intervals of a share, and paired tests of a difference.

Both models answer the same items, so that a difference is judged item by item: of shares by the exact test of McNemar
(1947) and the interval of Newcombe (Statistics in Medicine 17, 1998, 2635, method 10), of means by a paired bootstrap.
Every interval is of 95 %, and has a width where all items agree: 48 of 48 is no certainty.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import bdtr, ndtr, ndtri, stdtrit

LEVEL = 0.95
Z = float(ndtri((1 + LEVEL) / 2))
RESAMPLES = 10_000
_DRAWN = 1 << 22  # indices drawn at a time

Interval = tuple[float, float]


@dataclass(frozen=True)
class Estimate:
    """A mean with its standard error."""

    mean: float
    stderr: float


@dataclass(frozen=True)
class Difference:
    """Of two models over the same items, quantized - unquantized.

    interval: of the mean difference, None for one item. p_value: of McNemar's test, None for means. noise: whether the
    items do not show that there is a difference: the interval holds 0, or the test has p >= 0.05.
    """

    interval: Interval | None
    p_value: float | None
    noise: bool


def average(values: Sequence[float]) -> Estimate:
    """The mean, with the standard error s / sqrt(n), s^2 = sum (x - mean)^2 / (n - 1); 0 for one value."""
    n = len(values)
    mean = math.fsum(values) / n
    if n < 2:
        return Estimate(mean, 0.0)
    return Estimate(mean, math.sqrt(math.fsum((x - mean) ** 2 for x in values) / (n - 1) / n))


def wilson(share: float, n: int) -> Interval:
    """The interval of a share of n items (Wilson 1927), which has a width at 0 and 1 too.

    (p + z^2 / 2n -+ z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n), z = 1.96
    """
    square = Z**2
    middle = share + square / (2 * n)
    half = Z * math.sqrt(share * (1 - share) / n + square / (4 * n * n))
    low, high = (middle - half) / (1 + square / n), (middle + half) / (1 + square / n)
    return (0.0 if share == 0 else low), (1.0 if share == 1 else high)


def mcnemar(baseline: Sequence[bool], quantized: Sequence[bool]) -> float:
    """p of the exact test: of the items that only one model has right, each has half of them but for chance."""
    lost, won = _discordant(baseline, quantized)
    return min(1.0, 2 * float(bdtr(min(lost, won), lost + won, 0.5)))


def newcombe(baseline: Sequence[bool], quantized: Sequence[bool]) -> Interval:
    """The interval of the difference p2 - p1 of two paired shares, from their own Wilson intervals (l, u).

    p2 - p1 -+ sqrt(a^2 - 2 phi a b + b^2), with a, b the distances to (l2, u1) below and to (u2, l1) above; phi is the
    correlation of the 2 x 2 table, continuity-corrected where it is positive.
    """
    n, both = len(baseline), sum(b and q for b, q in zip(baseline, quantized, strict=True))
    lost, won = _discordant(baseline, quantized)
    first, second = (both + lost) / n, (both + won) / n
    (low1, high1), (low2, high2) = wilson(first, n), wilson(second, n)
    phi = _correlation(both, lost, won, n - both - lost - won)
    below = _combined(second - low2, high1 - first, phi)
    above = _combined(high2 - second, first - low1, phi)
    return second - first - below, second - first + above


def _discordant(baseline: Sequence[bool], quantized: Sequence[bool]) -> tuple[int, int]:
    """How many items only the unquantized, only the quantized model has right."""
    pairs = list(zip(baseline, quantized, strict=True))
    return sum(b and not q for b, q in pairs), sum(q and not b for b, q in pairs)


def _correlation(both: int, lost: int, won: int, neither: int) -> float:
    margins = (both + lost) * (won + neither) * (both + won) * (lost + neither)
    if not margins:
        return 0.0
    product = both * neither - lost * won
    corrected = max(product - (both + lost + won + neither) / 2, 0) if product > 0 else product
    return corrected / math.sqrt(margins)


def _combined(a: float, b: float, phi: float) -> float:
    return math.sqrt(max(0.0, a * a - 2 * phi * a * b + b * b))


def bootstrap(differences: Sequence[float], seed: int = 0) -> Interval:
    """The interval of the mean of paired differences: percentiles of the means of 10,000 resamples of the items.

    The percentiles are those of Hesterberg's expanded interval (arXiv 1411.5279), Phi(-+ sqrt(n / (n - 1))
    t(n - 1)), without which the bootstrap of few items is too narrow. Needs two items.
    """
    values = np.asarray(differences, dtype=np.float64)
    n = len(values)
    generator = np.random.default_rng(seed)
    size = max(1, _DRAWN // n)
    means = np.concatenate(
        [
            values[generator.integers(0, n, (min(size, RESAMPLES - start), n))].mean(1)
            for start in range(0, RESAMPLES, size)
        ]
    )
    tail = ndtr(-math.sqrt(n / (n - 1)) * stdtrit(n - 1, (1 + LEVEL) / 2))
    low, high = np.quantile(means, (tail, 1 - tail))
    return float(low), float(high)


def of_shares(baseline: Sequence[bool], quantized: Sequence[bool]) -> Difference:
    """Right answers of both models."""
    p_value = mcnemar(baseline, quantized)
    if len(baseline) < 2:
        return Difference(None, p_value, True)
    low, high = newcombe(baseline, quantized)
    return Difference((low, high), p_value, low <= 0 <= high or p_value >= 1 - LEVEL)


def of_means(baseline: Sequence[float], quantized: Sequence[float]) -> Difference:
    """Scores of both models."""
    if len(baseline) < 2:
        return Difference(None, None, True)
    low, high = bootstrap([q - b for b, q in zip(baseline, quantized, strict=True)])
    return Difference((low, high), None, low <= 0 <= high)
