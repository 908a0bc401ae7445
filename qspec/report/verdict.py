"""The verdict on a compiled model: the worst of what was measured, computed here and nowhere else.

A loss is what a paired test over the items shows, at the tier of its size. That there is none, or none that is large,
is concluded only where the 95 % interval excludes a large one and the metric could have shown it: not where the
unquantized model is at chance or saturated. Nothing is ever said to be kept: a verdict without a loss says how many
texts differ, because two models that score alike can write differently.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from qspec.evaluate.gates import CHANCE, WITHOUT_BASE
from qspec.evaluate.results import LARGE_ABOVE, Flips, Metric, Tier, task_scores
from qspec.plan import bits_text
from qspec.report.data import ReportData

LOSSES = ("small", "medium", "large")
SATURATED_FROM = 0.99  # of the unquantized model's answers right: what it may lose at most is hidden by the ceiling

SATURATED = "saturated: the unquantized model has 99 % or more right"
FEW = "n is small: a large loss is not excluded"


@dataclass(frozen=True)
class Verdict:
    """headline: the sentence. details: what stands below it, a few words each. worst: the metric that decides, of
    `tier`; None and undefined where nothing was measured that can decide."""

    headline: str
    details: tuple[str, ...]
    tier: Tier
    worst: Metric | None


def verdict(data: ReportData) -> Verdict:
    """The largest loss that is shown; without one, the metric that excludes the least."""
    bits = f"Bits per weight: {bits_text(data.bits_per_weight, data.bits_per_weight_model)}"
    if not data.metrics:
        return Verdict("Quality was not measured.", (bits,), "undefined", None)
    tier, worst, name, sentence = _worst(data.metrics)
    stand_in = f" on the stand-in {data.model.id}" if data.model.standin else ""
    limited = f", limited to {data.limit} items" if data.limit is not None else ""
    failed = sum(not gate.passed for gate in data.gates)
    gates = f"{failed} of {len(data.gates)} gates failed. " if failed else "All gates passed. " if data.gates else ""
    headline, parted = f"{gates}{name}{stand_in}{limited}: {sentence}", _parted(data)
    details = [*(str(gate) for gate in data.gates), bits]
    if parted:
        task = data.labels.get(parted.task, parted.task)
        details.append(f"Trajectories, at worst: {drift(parted)} on {task}")
        if tier in ("within noise", "small"):
            headline += f" {parted.texts - parted.same_texts} of {parted.texts} texts differ on {task}."
    return Verdict(headline, (*details, *_only_rounded(data), *_undecided(data.metrics)), tier, worst)


def _only_rounded(data: ReportData) -> list[str]:
    """What the passes are worth: the NELBO of the same schemes without them, beside the recipe's."""
    if data.reference is None:
        return []
    bits = bits_text(data.reference.bits_per_weight, data.reference.bits_per_weight_model)
    ours = {metric.task: metric for metric in data.metrics if metric.metric == "nelbo"}
    return [
        f"Only rounded (RTN), {bits}: NELBO on {one.label} {one.quantized:.4f}, here {ours[one.task].quantized:.4f}, "
        f"unquantized {one.baseline:.4f}"
        for one in data.reference.metrics
        if one.task in ours
    ]


def _worst(metrics: Sequence[Metric]) -> tuple[Tier, Metric | None, str, str]:
    """Tier, metric, what it is called, and the sentence."""
    deciding = [metric for metric in metrics if undecided(metric) is None]
    if not deciding:
        return "undefined", None, "Undecided", "nothing that was measured shows a loss or excludes a large one."
    shown = [metric for metric in deciding if metric.tier in LOSSES]
    if shown:
        worst = max(shown, key=lambda metric: metric.drop_percent or 0.0)
        tier, name = worst.tier, f"{worst.tier.capitalize()} loss"
        sentence = f"the worst measure is {worst.measure} on {worst.label}, {_change(worst)}, n = {worst.n}."
    else:
        worst = max(deciding, key=_most)
        tier, name, excluded = "within noise", "Within noise", f"excludes one above {_most(worst):.1f} %, n = {worst.n}"
        sentence = f"no measure shows a loss; {worst.measure} on {worst.label} {excluded}."
    if tier in ("within noise", "small") and all(metric.metric == "nelbo" for metric in deciding):
        sentence += " Accuracy is undecided." if task_scores(metrics) else " Accuracy was not measured."
    return tier, worst, name, sentence


def undecided(metric: Metric) -> str | None:
    """Why a metric shows neither a loss nor that there is no large one; None where it decides."""
    share = metric.metric != "nelbo"
    if metric.at_chance:
        return CHANCE
    if metric.drop_percent is None:
        return WITHOUT_BASE
    if metric.tier in LOSSES:
        return None
    if share and metric.baseline >= SATURATED_FROM:
        return SATURATED
    return FEW if metric.losses is None or metric.losses[1] > LARGE_ABOVE else None


def drift(flips: Flips) -> str:
    """One task's trajectories in words."""
    if not flips.mean and flips.same_texts == flips.texts:
        return "no commit moved"
    return (
        f"{100 * flips.mean:.1f} % of commits moved, {flips.texts - flips.same_texts} of {flips.texts} texts and "
        f"{100 * flips.token_flips:.1f} % of tokens differ"
    )


def _parted(data: ReportData) -> Flips | None:
    """The task whose texts differ most."""
    return max(data.flips, key=lambda own: (1 - own.same_texts / own.texts, own.token_flips, own.mean), default=None)


def _most(metric: Metric) -> float:
    """The largest loss that the 95 % interval holds, in percent."""
    return max(0.0, metric.losses[1]) if metric.losses else float("inf")


def _change(metric: Metric) -> str:
    """The drop with its 95 % interval."""
    drop = metric.drop_percent or 0.0
    size = f"{drop:.1f} %" if drop >= 0.05 else "less than 0.1 %"
    low, high = metric.losses or (drop, drop)
    return f"{size} worse (95 %: {low:.1f} to {high:.1f} %)"


def _undecided(metrics: Sequence[Metric]) -> list[str]:
    """One line for all metrics that are undecided for one reason, by one measure and n."""
    groups: dict[tuple[str, str, int], list[str]] = {}
    for metric in metrics:
        reason = undecided(metric)
        if reason is not None:
            groups.setdefault((reason, metric.measure, metric.n), []).append(metric.label)
    return [f"Undecided ({why}): {name} on {', '.join(own)}, n = {n}" for (why, name, n), own in groups.items()]
