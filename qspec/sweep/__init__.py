"""Fewer steps and fewer bits: one task's texts of both models over a grid of sampler settings.

What each model writes is compared with what the unquantized model writes at the task's own settings: e is the share of
a text's tokens that differ. If fewer steps change a share a of the tokens and quantization a share b, and neither
minds the other, both together change 1 - (1 - a)(1 - b). What is changed beyond that is where they hurt each other;
its mean over the texts has a 95 % interval, by a bootstrap.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from qspec.evaluate.results import Flips
from qspec.evaluate.statistics import Interval
from qspec.files import require_folder, write_whole
from qspec.report.page import asset, render_html, render_markdown
from qspec.report.render import FILTERS


@dataclass(frozen=True)
class Cell:
    """One point of the grid.

    settings: steps, and what else was varied. passes: mean number of forward passes a text, of the unquantized model.
    unquantized, quantized: share of tokens that differ from the reference. expected: of the quantized model, if steps
    and bits minded their own business. beyond: quantized - expected, the mean over the texts; interval: its 95 %
    interval, None for one text. flips: of both models at these settings.
    """

    settings: Mapping[str, Any]
    passes: float
    unquantized: float
    quantized: float
    expected: float
    beyond: float
    interval: Interval | None
    flips: Flips

    @property
    def group(self) -> str:
        """The settings but for the steps, as people read them."""
        return ", ".join(f"{key} {value}" for key, value in self.settings.items() if key != "steps")

    @property
    def finding(self) -> str:
        """Whether steps and bits hurt each other here."""
        if self.interval is None or self.interval[0] <= 0 <= self.interval[1]:
            return "within noise"
        return "hurt each other" if self.beyond > 0 else "hide each other"


@dataclass(frozen=True)
class Sweep:
    """task: as people read it. reference: the settings that both models are compared at. skipped: settings that the
    sampler does not take, one sentence each."""

    model: str
    standin: bool
    recipe: str
    bits: str
    task: str
    items: int
    length: int
    seed: int
    reference: Mapping[str, Any]
    cells: tuple[Cell, ...]
    skipped: tuple[str, ...]
    execution: str
    environment: Mapping[str, str]

    @property
    def groups(self) -> dict[str, list[Cell]]:
        """Cells that differ in their steps alone, from the fewest passes to the most."""
        groups: dict[str, list[Cell]] = {}
        for cell in sorted(self.cells, key=lambda cell: cell.passes):
            groups.setdefault(cell.group, []).append(cell)
        return groups

    @property
    def headline(self) -> str:
        """The settings at which steps and bits hurt each other most, or that none show it."""
        on = f" on the stand-in {self.model}" if self.standin else ""
        shown = [cell for cell in self.cells if cell.finding == "hurt each other"]
        if not shown:
            return f"Within noise{on}: at no setting do fewer steps and quantization hurt each other, n = {self.items}."
        worst = max(shown, key=lambda cell: cell.beyond)
        at = ", ".join(f"{key} {value}" for key, value in worst.settings.items())
        low, high = worst.interval or (worst.beyond, worst.beyond)
        return (
            f"Fewer steps and quantization hurt each other{on}: most at {at}, where {100 * worst.beyond:.1f} % more "
            f"tokens change (95 %: {100 * low:.1f} to {100 * high:.1f} %), n = {self.items}."
        )

    def as_json(self) -> dict[str, Any]:
        """Plain lists and dictionaries."""
        return asdict(self) | {"headline": self.headline}


def write_sweep(folder: Path, data: Sweep) -> None:
    """sweep.html, sweep.md, sweep.json and figures/*.svg. Errors: MachineError or InputError where nothing can be
    written."""
    from qspec.sweep.figures import figures

    drawn = figures(data)
    require_folder(folder)
    write_whole(folder / "sweep.json", json.dumps(data.as_json(), allow_nan=False, indent=1) + "\n")
    write_whole(folder / "sweep.html", render_html("sweep.html.jinja", FILTERS, {"data": data}, figures=drawn))
    write_whole(folder / "sweep.md", render_markdown("sweep.md.jinja", FILTERS, {"data": data}))
    for name, figure in drawn.items():
        write_whole(folder / "figures" / f"{name}.svg", figure.svg.standalone(asset("palette.css")))
