"""What was measured, as values: metrics with tiers and standard errors, fidelity, trajectories, samples.

Tiers are those of arXiv 2508.14896, section 4: a relative drop below 1 % is negligible, 1 to 4 % moderate,
above 4 % significant. For the NELBO, where less is better, the drop is the relative increase.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

Tier = Literal["negligible", "moderate", "significant", "undefined"]

NEGLIGIBLE_BELOW = 1.0  # percent
SIGNIFICANT_ABOVE = 4.0


@dataclass(frozen=True)
class Metric:
    """One number of both models, with equal seeds.

    task: the name in the recipe, or the text of a NELBO. title: what was really run. metric: "nelbo" (nats
    a token, less is better), "exact_match" or "choice_accuracy" (shares from 0 to 1). drop_percent:
    relative to the unquantized model, positive is worse; None where that scored 0. n: items or samples.
    stderr: standard error of quantized - baseline, paired over the items. baseline_stderr,
    quantized_stderr: each model's own, binomial for shares.
    """

    task: str
    title: str
    metric: str
    baseline: float
    quantized: float
    drop_percent: float | None
    tier: Tier
    n: int
    stderr: float
    baseline_stderr: float
    quantized_stderr: float


@dataclass(frozen=True)
class Sample:
    """One generated text of each model, with the reference."""

    task: str
    prompt: str
    reference: str
    baseline: str
    quantized: str
    baseline_right: bool
    quantized_right: bool


@dataclass(frozen=True)
class KlBucket:
    """Mean KL(quantized || unquantized) in nats at masked positions, of inputs with low < mask ratio <= high."""

    text: str
    low: float
    high: float
    kl: float
    positions: int


@dataclass(frozen=True)
class Flips:
    """How far the quantized model's denoising leaves the unquantized model's, on one task.

    commit_flips[s]: share of the positions that the unquantized model commits in the s-th of equal parts of
    its steps and the quantized model does not commit at that same step (None where nothing was committed).
    token_flips: share of positions whose final token differs. Both count positions up to the first end of
    text of the unquantized model.
    """

    task: str
    commit_flips: tuple[float | None, ...]
    mean: float
    token_flips: float
    positions: int


@dataclass(frozen=True)
class Measurements:
    """Everything that one evaluation found.

    not_measured: sentences. replacements: what a stand-in's own data stood in for. timings: seconds by part.
    """

    metrics: tuple[Metric, ...]
    kl: tuple[KlBucket, ...]
    flips: tuple[Flips, ...]
    samples: tuple[Sample, ...]
    not_measured: tuple[str, ...]
    replacements: tuple[str, ...]
    seed: int
    timings: Mapping[str, float]

    def as_json(self) -> dict[str, Any]:
        """Plain lists and dictionaries."""
        return asdict(self)


@dataclass(frozen=True)
class Estimate:
    """A mean with its standard error."""

    mean: float
    stderr: float


def tier(drop_percent: float | None) -> Tier:
    """The paper's name for a relative drop; an improvement is negligible."""
    if drop_percent is None:
        return "undefined"
    if drop_percent < NEGLIGIBLE_BELOW:
        return "negligible"
    return "moderate" if drop_percent <= SIGNIFICANT_ABOVE else "significant"


def average(values: Sequence[float]) -> Estimate:
    """The mean, with the standard error s / sqrt(n), s^2 = sum (x - mean)^2 / (n - 1); 0 for one value."""
    n = len(values)
    mean = math.fsum(values) / n
    if n < 2:
        return Estimate(mean, 0.0)
    return Estimate(mean, math.sqrt(math.fsum((x - mean) ** 2 for x in values) / (n - 1) / n))


def accuracy(task: str, title: str, metric: str, baseline: Sequence[bool], quantized: Sequence[bool]) -> Metric:
    """A share of right answers of both models over the same items; drop = (baseline - quantized) / baseline."""
    n = len(baseline)
    before, after = sum(baseline) / n, sum(quantized) / n
    differences = [float(q) - float(b) for b, q in zip(baseline, quantized, strict=True)]
    drop = None if before == 0 else round(100 * (before - after) / before, 9)
    return Metric(
        task=task,
        title=title,
        metric=metric,
        baseline=before,
        quantized=after,
        drop_percent=drop,
        tier=tier(drop),
        n=n,
        stderr=average(differences).stderr,
        baseline_stderr=_binomial(before, n),
        quantized_stderr=_binomial(after, n),
    )


def nelbo(task: str, title: str, baseline: Sequence[float], quantized: Sequence[float]) -> Metric:
    """NELBO per token of both models over the same samples; drop = relative increase."""
    before, after = average(baseline), average(quantized)
    differences = average([q - b for b, q in zip(baseline, quantized, strict=True)])
    drop = None if before.mean == 0 else round(100 * (after.mean - before.mean) / before.mean, 9)
    return Metric(
        task=task,
        title=title,
        metric="nelbo",
        baseline=before.mean,
        quantized=after.mean,
        drop_percent=drop,
        tier=tier(drop),
        n=len(baseline),
        stderr=differences.stderr,
        baseline_stderr=before.stderr,
        quantized_stderr=after.stderr,
    )


def _binomial(share: float, n: int) -> float:
    return math.sqrt(share * (1 - share) / n)
