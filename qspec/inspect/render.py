"""An inspection as a page, Markdown, JSON and figures."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qspec.files import write_whole
from qspec.inspect import summary
from qspec.inspect.data import KINDS, Inspection, Row, largest
from qspec.inspect.figures import figures
from qspec.report.drawing import Figure
from qspec.report.page import Filters, asset, render_html, render_markdown


def write_inspection(folder: Path, data: Inspection) -> None:
    """Writes inspect.html, inspect.md, inspect.json and figures/*.svg.

    Of an earlier inspection there, the drawings that this one lacks go away; other files are left alone. Errors:
    MachineError or InputError where the folder cannot be written.
    """
    drawn = figures(data)
    earlier = KINDS if (folder / "inspect.json").is_file() else ()
    write_whole(folder / "inspect.json", json.dumps(data.as_json(), allow_nan=False, indent=1) + "\n")
    write_whole(folder / "inspect.html", html(data, drawn))
    write_whole(folder / "inspect.md", markdown(data))
    for name, figure in drawn.items():
        write_whole(folder / "figures" / f"{name}.svg", figure.svg.standalone(asset("palette.css")))
    for kind in earlier:
        if kind not in drawn:
            (folder / "figures" / f"{kind}.svg").unlink(missing_ok=True)


def html(data: Inspection, drawn: Mapping[str, Figure]) -> str:
    """One self-contained page."""
    return render_html("inspect.html.jinja", FILTERS, _context(data), figures=drawn)


def markdown(data: Inspection) -> str:
    """The short form, for a pull request or a paper's appendix."""
    return render_markdown("inspect.md.jinja", FILTERS, _context(data))


def _context(data: Inspection) -> dict[str, Any]:
    every = sorted(data.at(), key=lambda row: (row.ratio, -row.found.crest))
    return {
        "data": data,
        "headline": summary.headline(data),
        "details": summary.details(data),
        "head": summary.HEAD,
        "words": summary.LEFT,
        "lines": [one.cells for one in summary.lines(data)],
        "every": summary.beside(data, every),
        "leaders": _leaders(data),
    }


def _leaders(data: Inspection) -> dict[str, Row]:
    """kind -> the row with its largest outlier."""
    found = {d.kind: largest(row for row in data.at() if row.found.kind == d.kind) for d in data.pictures}
    return {kind: row for kind, row in found.items() if row is not None}


FILTERS: Filters = {
    "short": summary.short,
    "percent": summary.percent,
    "span": lambda row: "–" if row is None else summary.percent(row.found.tokens_spanned),
    "unbroken": lambda text: text.replace(" %", "\u00a0%"),
}
