"""Measures an artifact and writes its report: what both `qspec compile` and `qspec eval` end with."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

from qspec.artifact import MEASURED
from qspec.evaluate import evaluate_artifact
from qspec.evaluate.artifact import EVERYTHING, Measuring
from qspec.evaluate.remembered import Remembered
from qspec.progress import Quiet
from qspec.report import ReportData, environment, memory, replace_report, report_data
from qspec.report.environment import now


def make_report(
    artifact: Path,
    model: str | None,
    device: str,
    files: Path,
    progress: Quiet,
    baseline: Remembered | None = None,
    how: Measuring = EVERYTHING,
) -> ReportData:
    """Everything that the artifact's recipe asks for, measured through the packed artifact, rendered and sealed.

    Arguments and errors: as `measure_report`; MachineError or InputError where the report cannot be written.
    """
    data = measure_report(artifact, model, device, files, progress, baseline, how)
    replace_report(artifact, data)
    forget_batches(artifact)
    return data


def forget_batches(artifact: Path) -> None:
    """Removes what an evaluation kept, once its results are where they belong."""
    shutil.rmtree(artifact / MEASURED, ignore_errors=True)


def measure_report(
    artifact: Path,
    model: str | None,
    device: str,
    files: Path,
    progress: Quiet,
    baseline: Remembered | None = None,
    how: Measuring = EVERYTHING,
) -> ReportData:
    """What an artifact's report shows, measured; nothing is written.

    model: the unquantized checkpoint, None to find it. files: where the recipe's relative paths start. progress: its
    timings so far go into the report. baseline: that checkpoint's model, where it is loaded already. Errors: as
    `evaluate_artifact`.
    """
    found = evaluate_artifact(artifact, model, device, files, progress, baseline, how)
    data = report_data(
        found.manifest,
        found.measurements,
        found.outliers,
        execution=found.execution,
        environment=environment(),
        timings=progress.seconds,
        memory=memory(),
    )
    return replace(data, measured_at=now())
