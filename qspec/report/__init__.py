"""The report of a compiled model: one HTML page, Markdown for pull requests, JSON for machines, figures
as SVG.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from qspec.files import write_whole
from qspec.report.data import ReportData, report_data
from qspec.report.environment import environment, memory
from qspec.report.figures import figures
from qspec.report.render import asset, html, markdown
from qspec.report.verdict import verdict

__all__ = ["ReportData", "environment", "memory", "report_data", "report_json", "write_report"]


def write_report(folder: Path, data: ReportData) -> dict[str, Any]:
    """Writes report.html, report.md, report.json and figures/*.svg below `folder`; returns what report.json
    holds.

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


def report_json(data: ReportData) -> dict[str, Any]:
    """The content of report.json: the data, with the verdict in words."""
    return {"verdict": verdict(data).headline, **data.as_json()}
