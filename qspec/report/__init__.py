"""The report of a compiled model: one HTML page, Markdown for pull requests, JSON for machines, figures as SVG."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from qspec.artifact import REPORT_PARTIAL, report_lock, seal_report
from qspec.errors import InputError
from qspec.files import machine_errors, sync_folder, write_whole
from qspec.manifest import Manifest
from qspec.report.data import ReportData, report_data
from qspec.report.environment import environment, memory
from qspec.report.figures import figures
from qspec.report.junit import junit
from qspec.report.page import asset
from qspec.report.render import card, html, markdown
from qspec.report.verdict import verdict

CARD = "README.md"

__all__ = [
    "ReportData",
    "environment",
    "has_full_report",
    "memory",
    "replace_report",
    "report_data",
    "report_json",
    "write_report",
]


def write_report(folder: Path, data: ReportData) -> dict[str, Any]:
    """Writes report.html, report.md, report.json, figures/*.svg and, with gates, junit.xml below `folder`.

    Returns what report.json holds.

    Errors: MachineError or InputError where the folder cannot be written.
    """
    content, drawn = report_json(data), figures(data)
    write_whole(folder / "report.json", json.dumps(content, allow_nan=False, indent=1) + "\n")
    write_whole(folder / "report.html", html(data, drawn))
    write_whole(folder / "report.md", markdown(data))
    if data.gates:
        write_whole(folder / "junit.xml", junit(data))
    for name, figure in drawn.items():
        write_whole(folder / "figures" / f"{name}.svg", figure.svg.standalone(asset("palette.css")))
    return content


def replace_report(artifact: Path, data: ReportData) -> dict[str, Any]:
    """Gives a finished artifact a new, sealed report; returns what report.json holds.

    The report is written aside, in a hidden folder of the artifact, and moved in whole, by one process at a time:
    whenever this is killed, the artifact has its old report, the new one or none, and loads; an old one that was
    moved out of the way comes back the next time. Errors: InputError where the artifact is no longer the one that
    was measured, or where a limited run would replace a full report; MachineError or InputError where nothing can be
    written there.
    """
    artifact = artifact.resolve()
    staging, place = artifact / REPORT_PARTIAL, artifact / "report"
    if data.limit is not None and has_full_report(artifact):
        raise InputError(
            f"a run limited to {data.limit} items does not replace a full report",
            where=str(place),
            hint="write it elsewhere: qspec eval ARTIFACT --limit N --report DIR",
        )
    with machine_errors(artifact), report_lock(artifact):
        if Manifest.read(artifact).digest != data.hashes.get("manifest"):
            raise InputError(
                "the report is of another artifact than the one that is there now",
                where=str(artifact),
                hint="measure this one: qspec eval ARTIFACT",
            )
        if (staging / "old").exists() and not place.exists():
            (staging / "old").replace(place)
        shutil.rmtree(staging, ignore_errors=True)
        content = write_report(staging / "report", data)
        if (artifact / CARD).is_file():
            original = (artifact / CARD).read_text(encoding="utf-8")
            write_whole(staging / "report" / "card.md", card(original, data))
        seal_report(staging)
        if place.exists():
            place.replace(staging / "old")
        (staging / "report").replace(place)
        sync_folder(artifact)
        shutil.rmtree(staging)
    return content


def has_full_report(artifact: Path) -> bool:
    """Whether a report is there of a run that was not limited, and measured something."""
    path = artifact / "report" / "report.json"
    if not path.is_file():
        return False
    content = ReportData.content(path)
    return bool(content.get("metrics")) and content.get("limit") is None


def report_json(data: ReportData) -> dict[str, Any]:
    """The content of report.json: the data, with the verdict in words and its tier."""
    found = verdict(data)
    said = {"verdict": found.headline, "verdict_tier": found.tier, "verdict_details": list(found.details)}
    return {**said, "verdict_passed": data.passed, **data.as_json()}
