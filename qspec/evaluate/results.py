"""What was measured, as values: metrics with tiers and standard errors, fidelity, trajectories, samples.

Tiers are those of arXiv 2508.14896, section 4: a relative drop below 1 % is negligible, 1 to 4 % moderate,
above 4 % significant. For the NELBO, where less is better, the drop is the relative increase.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from qspec.data import DataPin

Tier = Literal["negligible", "moderate", "significant", "undefined"]

NEGLIGIBLE_BELOW = 1.0  # percent
SIGNIFICANT_ABOVE = 4.0
METRIC_NAMES = {"exact_match": "exact match", "choice_accuracy": "rated choices", "nelbo": "NELBO"}


@dataclass(frozen=True)
class Metric:
    """One number of both models, with equal seeds.

    task: the name in the recipe, or the text of a NELBO. source: what answered in its place, such as "stand-in
    recall"; empty where the data are those of that name. title: what was really run. metric: "nelbo" (nats
    a token, less is better), "exact_match" or "choice_accuracy" (shares from 0 to 1). drop_percent:
    relative to the unquantized model, positive is worse; None where that scored 0. n: items or samples.
    stderr: standard error of quantized - baseline, paired over the items. baseline_stderr,
    quantized_stderr: each model's own, binomial for shares. chance: the share that guessing scores.
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
    source: str = ""
    chance: float = 0.0

    @property
    def label(self) -> str:
        """The task as people read it."""
        return task_label(self.task, self.source)

    @property
    def measure(self) -> str:
        """The metric as people read it."""
        return METRIC_NAMES.get(self.metric, self.metric)

    def __post_init__(self) -> None:
        if self.n < 1:
            raise ValueError(f"a metric of {self.n} items")
        if self.metric != "nelbo" and not (0 <= self.baseline <= 1 and 0 <= self.quantized <= 1):
            raise ValueError(f"shares must be from 0 to 1, not {self.baseline} and {self.quantized}")


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

    not_measured: sentences. replacements: what a stand-in's own data stood in for. timings: seconds by part. data:
    exactly which data was read.
    """

    metrics: tuple[Metric, ...]
    kl: tuple[KlBucket, ...]
    flips: tuple[Flips, ...]
    samples: tuple[Sample, ...]
    not_measured: tuple[str, ...]
    replacements: tuple[str, ...]
    seed: int
    timings: Mapping[str, float]
    data: tuple[DataPin, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Plain lists and dictionaries."""
        return asdict(self)


@dataclass(frozen=True)
class Estimate:
    """A mean with its standard error."""

    mean: float
    stderr: float


def task_label(task: str, source: str) -> str:
    """`stand-in recall (for mmlu)` where other data answered in the task's place: its name alone would claim them."""
    return f"{source} (for {task})" if source else task


def wilson(share: float, n: int) -> tuple[float, float]:
    """The 95 % interval of a share of n items (Wilson 1927), which has a width at 0 and 1 too.

    (p + z^2 / 2n -+ z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n), z = 1.96
    """
    square = 1.959964**2
    middle = share + square / (2 * n)
    half = math.sqrt(square * (share * (1 - share) / n + square / (4 * n * n)))
    low, high = (middle - half) / (1 + square / n), (middle + half) / (1 + square / n)
    return (0.0 if share == 0 else low), (1.0 if share == 1 else high)


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


def accuracy(
    task: str,
    title: str,
    metric: str,
    baseline: Sequence[bool],
    quantized: Sequence[bool],
    source: str = "",
    chance: float = 0.0,
) -> Metric:
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
        source=source,
        chance=chance,
    )


def nelbo(task: str, title: str, baseline: Sequence[float], quantized: Sequence[float], source: str = "") -> Metric:
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
        source=source,
    )


def _binomial(share: float, n: int) -> float:
    return math.sqrt(share * (1 - share) / n)
