"""A search as a page, Markdown and figures, beside its results."""

from __future__ import annotations

from typing import Any

from qspec.files import write_whole
from qspec.report.page import Filters, asset, render_html, render_markdown
from qspec.search.figures import figures
from qspec.search.run import Outcome

FILTERS: Filters = {"short": lambda value: "–" if value is None else f"{value:.4g}", "bits": lambda v: f"{v:.4f}"}


def write_report(outcome: Outcome) -> None:
    """Writes search.html, search.md and figures/*.svg into the search's folder.

    Errors: MachineError or InputError where the folder cannot be written.
    """
    drawn, context = figures(outcome), _context(outcome)
    write_whole(outcome.folder / "search.html", render_html("search.html.jinja", FILTERS, context, figures=drawn))
    write_whole(outcome.folder / "search.md", render_markdown("search.md.jinja", FILTERS, context))
    for name, figure in drawn.items():
        write_whole(outcome.folder / "figures" / f"{name}.svg", figure.svg.standalone(asset("palette.css")))


def _context(outcome: Outcome) -> dict[str, Any]:
    return {
        "outcome": outcome,
        "spec": outcome.space.plan.spec,
        "search": outcome.search,
        "worst": sorted(outcome.sensitivities, key=lambda sensitivity: -sensitivity.loss.mean)[:12],
        "maps": [
            f"sensitivity-{n}" for n in dict.fromkeys(sensitivity.scheme for sensitivity in outcome.sensitivities)
        ],
    }
