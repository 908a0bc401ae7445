"""Gates: what a recipe requires of its own measurements, and whether they show it."""

from __future__ import annotations

from collections.abc import Sequence

from qspec.evaluate.results import GateResult, Metric, task_scores
from qspec.language.spec import Gate

CHANCE = "the unquantized model is at chance"
WITHOUT_BASE = "the unquantized model scores 0"


def judge(gates: Sequence[Gate], metrics: Sequence[Metric]) -> tuple[GateResult, ...]:
    """Each gate against what was measured: a NELBO's worst text, a task's first accuracy."""
    return tuple(_judged(gate, _about(gate, metrics)) for gate in gates)


def _about(gate: Gate, metrics: Sequence[Metric]) -> list[Metric]:
    if gate.measure != "nelbo":
        return [metric for metric in task_scores(metrics) if metric.task == gate.measure]
    wanted = gate.text.name if gate.text else None
    return [metric for metric in metrics if metric.metric == "nelbo" and wanted in (None, metric.task)]


def _judged(gate: Gate, metrics: Sequence[Metric]) -> GateResult:
    if not metrics:
        return GateResult(str(gate), False, "not measured")
    worst = max(metrics, key=lambda metric: _loss(gate, metric))
    on = f" on {worst.label}, n = {worst.n}"
    if worst.at_chance or worst.drop_percent is None:
        return GateResult(str(gate), False, (CHANCE if worst.at_chance else WITHOUT_BASE) + on)
    loss, scale = _loss(gate, worst), 1.0 if gate.unit == "%" else worst.baseline
    low, high = worst.losses or (worst.drop_percent, worst.drop_percent)
    found = f"{loss:.2f} {gate.unit}, 95 %: {scale * low:.2f} to {scale * high:.2f}{on}"
    return GateResult(str(gate), loss <= gate.most, found)


def _loss(gate: Gate, metric: Metric) -> float:
    """In the gate's unit; rounded as drops are, so that a limit is met by what is written as it."""
    if gate.unit == "points":
        return round(100 * (metric.baseline - metric.quantized), 9)
    return metric.drop_percent or 0.0
