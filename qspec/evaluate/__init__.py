"""Measures a quantized model against the unquantized one, with equal seeds, masks and sampler settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qspec.evaluate.artifact import Evaluated, Measuring, evaluate_artifact
from qspec.evaluate.measure import measure, measure_outliers
from qspec.evaluate.outliers import OutlierReport
from qspec.evaluate.results import Measurements, Metric

__all__ = [
    "Evaluated",
    "Measurements",
    "Measuring",
    "Metric",
    "OutlierReport",
    "evaluate",
    "evaluate_artifact",
    "measure",
    "measure_outliers",
]


def evaluate(artifact: str | Path, model: str | None = None, device: str = "auto") -> dict[str, Any]:
    """Measures an artifact as its recipe asks, against the checkpoint that it was compiled from.

    model: that checkpoint, where it is not where the compiler found it. Returns metrics [{task, metric,
    baseline, quantized, drop_percent, tier, n, stderr, ...}], kl, flips, samples, not_measured,
    replacements, seed, timings. Errors: InputError for a changed artifact, another checkpoint, or data that
    are not there; MachineError.
    """
    return evaluate_artifact(Path(artifact), model, device).measurements.as_json()
