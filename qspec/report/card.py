"""The artifact's model card with the report's results, for a hub."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from qspec.report.page import Filters, render_markdown

BEFORE = "## Loading\n"  # where the results stand


def card_with_results(card: str, filters: Filters, context: Mapping[str, Any]) -> str:
    """The card, with verdict and metrics above the section on loading."""
    head, mark, rest = card.partition(BEFORE)
    results = render_markdown("card.md.jinja", filters, context)
    return f"{Markup(head)}{results}\n{mark}{rest}" if mark else card
