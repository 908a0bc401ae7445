"""The report of a compiled model: one HTML page, Markdown for pull requests, JSON for machines, figures as SVG."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from qspec.artifact import seal_report
from qspec.files import machine_errors, sync_folder, write_whole
from qspec.report.data import ReportData, report_data
from qspec.report.environment import environment, memory
from qspec.report.figures import figures
from qspec.report.page import asset
from qspec.report.render import html, markdown
from qspec.report.verdict import verdict

__all__ = ["ReportData", "environment", "memory", "replace_report", "report_data", "report_json", "write_report"]


def write_report(folder: Path, data: ReportData) -> dict[str, Any]:
    """Writes report.html, report.md, report.json and figures/*.svg below `folder`; returns what report.json holds.

    Errors: MachineError or InputError where the folder cannot be written.
    """
    content, drawn = report_json(data), figures(data)
    write_whole(folder / "report.json", json.dumps(content, allow_nan=False, indent=1) + "\n")
    write_whole(folder / "report.html", html(data, drawn))
    write_whole(folder / "report.md", markdown(data))
    for name, figure in drawn.items():
        write_whole(folder / "figures" / f"{name}.svg", figure.svg.standalone(asset("palette.css")))
    for old in (folder / "figures").glob("*.svg"):
        if old.stem not in drawn:
            old.unlink()
    return content


def replace_report(artifact: Path, data: ReportData) -> dict[str, Any]:
    """Gives a finished artifact a new, sealed report; returns what report.json holds.

    The report is written beside the artifact and moved in whole: whenever this is killed, the artifact has its old
    report, the new one or none, and loads. Errors: MachineError or InputError where nothing can be written there.
    """
    artifact = artifact.resolve()
    staging = artifact.with_name(f"{artifact.name}.report.partial")
    with machine_errors(staging):
        shutil.rmtree(staging, ignore_errors=True)
        content = write_report(staging / "report", data)
        seal_report(staging)
        if (artifact / "report").exists():
            (artifact / "report").replace(staging / "old")
        (staging / "report").replace(artifact / "report")
        sync_folder(artifact)
        shutil.rmtree(staging)
    return content


def report_json(data: ReportData) -> dict[str, Any]:
    """The content of report.json: the data, with the verdict in words."""
    return {"verdict": verdict(data).headline, **data.as_json()}
