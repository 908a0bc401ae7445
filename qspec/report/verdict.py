"""The one sentence at the top of a report, computed from the metrics."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from qspec.evaluate.results import Metric, Tier, tier
from qspec.report.data import ReportData

ORDER: tuple[Tier, ...] = ("negligible", "moderate", "significant", "undefined")


@dataclass(frozen=True)
class Verdict:
    """headline: the sentence. details: what stands below it, a few words each. tier: of the headline's drop."""

    headline: str
    details: tuple[str, ...]
    tier: Tier
    kept_percent: float | None


def verdict(data: ReportData) -> Verdict:
    """Accuracy kept where tasks were measured, else the NELBO, else the size alone."""
    bits = f"{data.bits_per_weight:.2f} bits per weight"
    scores = task_scores(data.metrics)
    losses = [metric for metric in data.metrics if metric.metric == "nelbo"]
    before = sum(metric.baseline for metric in scores)
    if scores and before > 0:
        kept = 100 * sum(metric.quantized for metric in scores) / before
        headline = f"Keeps {percent(kept)} of the unquantized accuracy at {bits}."
        return Verdict(headline, tuple(_details(scores, losses)), tier(100 - kept), kept)
    if scores:
        headline = f"The unquantized model solves none of the tasks; {bits}."
        return Verdict(headline, tuple(_details([], losses)), "undefined", None)
    if losses and losses[0].drop_percent is not None:
        change = losses[0].drop_percent
        word = "raises" if change >= 0 else "lowers"
        headline = f"{bits[0].upper()}{bits[1:]} {word} the NELBO by {abs(change):.1f} %."
        return Verdict(headline, (), losses[0].tier, None)
    return Verdict(f"{bits}, not measured.", (), "undefined", None)


def task_scores(metrics: Sequence[Metric]) -> list[Metric]:
    """One accuracy for each task: the first measured, which is the exact match where there is one."""
    first: dict[str, Metric] = {}
    for metric in metrics:
        if metric.metric != "nelbo":
            first.setdefault(metric.task, metric)
    return list(first.values())


def percent(value: float) -> str:
    """One decimal, rounded down: nothing below 100 is ever shown as 100."""
    return f"{math.floor(round(value * 10, 6)) / 10:.1f} %"


def _details(scores: Sequence[Metric], losses: Sequence[Metric]) -> list[str]:
    details = []
    if scores:
        names = "task" if len(scores) == 1 else "tasks"
        details.append(f"mean of {len(scores)} {names}")
        worst = max(scores, key=lambda metric: (ORDER.index(metric.tier), metric.drop_percent or 0.0))
        if worst.drop_percent is not None and worst.drop_percent > 0:
            details.append(f"largest drop: {worst.task}, {worst.drop_percent:.1f} % ({worst.tier})")
    for metric in losses:
        if metric.drop_percent is not None:
            details.append(f"NELBO on {metric.task} {metric.drop_percent:+.1f} %")
    return details
