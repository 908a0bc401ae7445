"""The verdict on a compiled model: the worst of what was measured, computed here and nowhere else.

A drop counts at its tier, whatever its n, which is named. That quality was kept is concluded only from a metric that
could have shown the contrary: not where the unquantized model is at chance or saturated, not where one item is more
than a negligible drop, not where the NELBO's own standard error hides one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from qspec.evaluate.results import NEGLIGIBLE_BELOW, Metric, Tier, wilson
from qspec.plan import bits_text
from qspec.report.data import ReportData

SATURATED_FROM = 0.99  # of the unquantized model's answers right: what it may lose at most is hidden by the ceiling
FEWEST_RIGHT = 100 / NEGLIGIBLE_BELOW  # right answers below which a single item is more than a negligible drop
STANDARD_ERRORS = 2  # that a drop must exceed to be seen

CHANCE = "the unquantized model is at chance"
SATURATED = "saturated: the unquantized model has 99 % or more right"
FEW = "n is small: one item is more than 1 % of the score"
NOISY = "the standard error hides a drop of 1 %"
WITHOUT_BASE = "the unquantized model scores 0"


@dataclass(frozen=True)
class Verdict:
    """headline: the sentence. details: what stands below it, a few words each. worst: the metric that decides, of
    `tier`; None and undefined where nothing was measured that can decide."""

    headline: str
    details: tuple[str, ...]
    tier: Tier
    worst: Metric | None


def verdict(data: ReportData) -> Verdict:
    """The metric with the largest relative drop of those that can decide."""
    bits = f"Bits per weight: {bits_text(data.bits_per_weight, data.bits_per_weight_model)}"
    if not data.metrics:
        return Verdict("Quality was not measured.", (bits,), "undefined", None)
    details = (bits, *_undecided(data.metrics))
    deciding = [metric for metric in data.metrics if undecided(metric) is None]
    if not deciding:
        return Verdict("Undecided: nothing that was measured can show a loss.", details, "undefined", None)
    worst = max(deciding, key=lambda metric: metric.drop_percent or 0.0)
    name = f"{worst.measure} on {worst.label}, {_change(worst.drop_percent or 0.0)}"
    headline = f"{worst.tier.capitalize()} loss: the worst measure is {name}, n = {worst.n}."
    if worst.tier == "negligible" and all(metric.metric == "nelbo" for metric in deciding):
        headline += " Accuracy is undecided." if task_scores(data.metrics) else " Accuracy was not measured."
    return Verdict(headline, details, worst.tier, worst)


def undecided(metric: Metric) -> str | None:
    """Why a metric shows neither a loss nor that there is none; None where it decides.

    At chance is a share whose 95 % interval reaches what guessing scores.
    """
    share = metric.metric != "nelbo"
    if share and wilson(metric.baseline, metric.n)[0] <= metric.chance:
        return CHANCE
    if metric.drop_percent is None:
        return WITHOUT_BASE
    if metric.tier != "negligible":
        return None
    if share and metric.baseline >= SATURATED_FROM:
        return SATURATED
    if share:
        return FEW if round(metric.baseline * metric.n) < FEWEST_RIGHT else None
    seen = STANDARD_ERRORS * metric.stderr <= NEGLIGIBLE_BELOW / 100 * abs(metric.baseline)
    return None if metric.n > 1 and seen else NOISY


def task_scores(metrics: Sequence[Metric]) -> list[Metric]:
    """One accuracy for each task: the first measured, which is the exact match where there is one."""
    first: dict[str, Metric] = {}
    for metric in metrics:
        if metric.metric != "nelbo":
            first.setdefault(metric.task, metric)
    return list(first.values())


def _change(drop: float) -> str:
    if drop == 0:
        return "unchanged"
    size = f"{abs(drop):.1f} %" if abs(drop) >= 0.05 else "less than 0.1 %"
    return f"{size} {'worse' if drop > 0 else 'better'}"


def _undecided(metrics: Sequence[Metric]) -> list[str]:
    """One line for all metrics that are undecided for one reason, by one measure and n."""
    groups: dict[tuple[str, str, int], list[str]] = {}
    for metric in metrics:
        reason = undecided(metric)
        if reason is not None:
            groups.setdefault((reason, metric.measure, metric.n), []).append(metric.label)
    return [f"Undecided ({why}): {name} on {', '.join(own)}, n = {n}" for (why, name, n), own in groups.items()]
