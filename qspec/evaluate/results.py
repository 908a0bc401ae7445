"""What was measured, as values: metrics with tiers and paired intervals, fidelity, trajectories, samples.

Tiers are sized as those of arXiv 2508.14896, section 4, which calls a relative drop below 1 % negligible, 1 to 4 %
moderate, above 4 % significant. Here they are a small, a medium and a large loss, for they speak of its size; what a
paired test over the items does not show is within noise, whatever its size. For the NELBO, where less is better, the
drop is the relative increase.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from qspec.data import DataPin, Scores, Scoring, TaskData
from qspec.evaluate import statistics
from qspec.evaluate.statistics import Interval, average

Tier = Literal["within noise", "better", "small", "medium", "large", "undefined"]

SMALL_BELOW = 1.0  # percent
LARGE_ABOVE = 4.0
METRIC_NAMES = {
    "exact_match": "exact match",
    "exact_match,flexible-extract": "exact match",
    "choice_accuracy": "rated choices",
    "acc": "accuracy",
    "acc_norm": "accuracy, by length",
    "pass_at_1": "pass@1",
    "nelbo": "NELBO",
}


@dataclass(frozen=True)
class Metric:
    """One number of both models, with equal seeds.

    task: the name in the recipe, or the text of a NELBO. source: what answered in its place, such as "stand-in
    recall"; empty where the data are those of that name. title: what was really run. metric: "nelbo" (nats
    a token, less is better), "exact_match" or "choice_accuracy" of a stand-in's tasks, or one of lm-eval's, such as
    "acc" (shares from 0 to 1). drop_percent: relative to the unquantized model, positive is worse; None where that
    scored 0. n: items or samples.
    stderr: standard error of quantized - baseline, paired over the items; interval: its 95 % interval, None for one
    item. p_value: of McNemar's exact test, None for a NELBO. baseline_stderr, quantized_stderr: each model's own,
    binomial for shares. chance: the share that guessing scores. items: each item's score of both models, in order;
    ids: the task and the place in it of each. others: the task's other numbers, of both models.
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
    interval: Interval | None
    p_value: float | None
    source: str = ""
    chance: float = 0.0
    items: tuple[tuple[float, float], ...] = ()
    ids: tuple[str, ...] = ()
    others: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """The task as people read it."""
        return task_label(self.task, self.source)

    @property
    def measure(self) -> str:
        """The metric as people read it."""
        return METRIC_NAMES.get(self.metric, self.metric)

    @property
    def at_chance(self) -> bool:
        """Whether a share's 95 % interval, of the unquantized model, reaches what guessing scores."""
        return self.metric != "nelbo" and statistics.wilson(self.baseline, self.n)[0] <= self.chance

    @property
    def losses(self) -> Interval | None:
        """The 95 % interval of `drop_percent`: that of the difference over the unquantized model's score."""
        if self.interval is None or self.baseline == 0:
            return None
        low, high = (100 * end / self.baseline for end in self.interval)
        return (low, high) if self.metric == "nelbo" else (-high, min(100.0, -low))

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
class Reference:
    """The recipe's schemes rounded to nearest (RTN), without any other pass: NELBO and KL on the same draws."""

    bits_per_weight: float
    bits_per_weight_model: float
    metrics: tuple[Metric, ...]
    kl: tuple[KlBucket, ...]


@dataclass(frozen=True)
class Flips:
    """How far the quantized model's denoising leaves the unquantized model's, on one task.

    commit_flips[s]: share of the positions that the unquantized model commits in the s-th of equal parts of
    its steps and the quantized model does not commit at that same step (None where nothing was committed).
    token_flips: share of positions whose final token differs. Both count positions up to the first end of
    text of the unquantized model. same_texts: how many of the texts are the same there. first_divergence: the median
    over the texts of the share of the steps after which the canvases part; 1 where they never do. tokens_per_step: that
    a step commits, of both; above 1 the sampler approximates one that commits a token a step.
    """

    task: str
    commit_flips: tuple[float | None, ...]
    mean: float
    token_flips: float
    positions: int
    texts: int
    same_texts: int
    first_divergence: float
    tokens_per_step: float


@dataclass(frozen=True)
class Speed:
    """What denoising one task took, of both models on the same texts: milliseconds of a step, medians of each batch,
    and tokens written a second, in steps with the most texts of each batch. rows: these texts, on average."""

    task: str
    rows: float
    baseline: float
    quantized: float
    baseline_tokens: float
    quantized_tokens: float


@dataclass(frozen=True)
class GateResult:
    """gate: as the recipe has it. found: what was measured, or why it cannot pass."""

    gate: str
    passed: bool
    found: str

    def __str__(self) -> str:
        return f"Gate {'passed' if self.passed else 'failed'}: {self.gate} ({self.found})"


@dataclass(frozen=True)
class Measurements:
    """Everything that one evaluation found.

    not_measured: sentences. replacements: what a stand-in's own data stood in for. timings: seconds by part. data:
    exactly which data was read. limit: the most items of a task and samples of a text, where the run was cut short.
    gates: what the recipe requires, judged.
    isolation: what confined the programs that the models wrote, where any ran. reference: what rounding alone does.
    speed: by task, where texts were written.
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
    limit: int | None = None
    gates: tuple[GateResult, ...] = ()
    isolation: str = ""
    reference: Reference | None = None
    speed: tuple[Speed, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Plain lists and dictionaries."""
        return asdict(self)


def task_label(task: str, source: str) -> str:
    """`stand-in recall (for mmlu)` where other data answered in the task's place: its name alone would claim them."""
    return f"{source} (for {task})" if source else task


def task_scores(metrics: Sequence[Metric]) -> list[Metric]:
    """One accuracy for each task: the first measured, which is the exact match where there is one."""
    first: dict[str, Metric] = {}
    for metric in metrics:
        if metric.metric != "nelbo":
            first.setdefault(metric.task, metric)
    return list(first.values())


def size(drop_percent: float | None) -> Tier:
    """The name of a relative drop by its size alone."""
    if drop_percent is None:
        return "undefined"
    if drop_percent < 0:
        return "better"
    if drop_percent < SMALL_BELOW:
        return "small"
    return "medium" if drop_percent <= LARGE_ABOVE else "large"


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
    found = statistics.of_shares(baseline, quantized)
    pairs = tuple((float(b), float(q)) for b, q in zip(baseline, quantized, strict=True))
    drop = None if before == 0 else round(100 * (before - after) / before, 9)
    return Metric(
        task=task,
        title=title,
        metric=metric,
        baseline=before,
        quantized=after,
        drop_percent=drop,
        tier="within noise" if found.noise else size(drop),
        n=n,
        stderr=average([q - b for b, q in pairs]).stderr,
        baseline_stderr=_binomial(before, n),
        quantized_stderr=_binomial(after, n),
        interval=found.interval,
        p_value=found.p_value,
        source=source,
        chance=chance,
        items=pairs,
    )


def scored(
    task: TaskData, scoring: Scoring, before: Sequence[Scores], after: Sequence[Scores], chance: float = 0.0
) -> Metric:
    """The reported number of both models, with the task's other ones."""
    first, second = ([one[scoring.metric] == 1 for one in own] for own in (before, after))
    names = [name for name in before[0] if name != scoring.metric]
    n = len(task.items)
    others = {name: (sum(one[name] for one in before) / n, sum(one[name] for one in after) / n) for name in names}
    metric = accuracy(task.name, task.title, scoring.metric, first, second, task.source, chance)
    return replace(metric, ids=tuple(item.id for item in task.items), others=others)


def nelbo(task: str, title: str, baseline: Sequence[float], quantized: Sequence[float], source: str = "") -> Metric:
    """NELBO per token of both models over the same samples; drop = relative increase."""
    before, after = average(baseline), average(quantized)
    found = statistics.of_means(baseline, quantized)
    pairs = tuple(zip(baseline, quantized, strict=True))
    drop = None if before.mean == 0 else round(100 * (after.mean - before.mean) / before.mean, 9)
    return Metric(
        task=task,
        title=title,
        metric="nelbo",
        baseline=before.mean,
        quantized=after.mean,
        drop_percent=drop,
        tier="within noise" if found.noise else size(drop),
        n=len(baseline),
        stderr=average([q - b for b, q in pairs]).stderr,
        baseline_stderr=before.stderr,
        quantized_stderr=after.stderr,
        interval=found.interval,
        p_value=None,
        source=source,
        items=pairs,
    )


def _binomial(share: float, n: int) -> float:
    return math.sqrt(share * (1 - share) / n)
