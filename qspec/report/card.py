"""The artifact's model card with the report's results, for a hub."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from qspec.data.hub import REVISIONS
from qspec.evaluate.results import Metric
from qspec.report.data import ReportData
from qspec.report.page import Filters, render_markdown

BEFORE = "## Loading\n"  # where the results stand
_SURROGATES = re.compile(r"\\ud[89ab][0-9a-f]{2}\\ud[c-f][0-9a-f]{2}")
_HEAD = re.compile(r"\A---\n(?:.*\n)*?(?=---\n)")


def card_with_results(card: str, filters: Filters, context: Mapping[str, Any]) -> str:
    """The card, with verdict and metrics above the section on loading, and the metrics in its head."""
    head, mark, rest = card.partition(BEFORE)
    results = render_markdown("card.md.jinja", filters, context)
    if not mark:
        return card
    listed = model_index(context["data"])
    return f"{Markup(_HEAD.sub(lambda match: match[0] + listed, head, count=1))}{results}\n{mark}{rest}"


def model_index(data: ReportData) -> str:
    """The line of a card's head from which a hub lists results; "" for those of a stand-in or of a limited run, which
    are no benchmark's.

    The value is JSON in ASCII, which is YAML too but for pairs of surrogates.
    """
    if data.model.standin or data.limit is not None or not data.metrics:
        return ""
    sets = {pin.name: (commit, id) for id, commit in REVISIONS.items() for pin in data.data if pin.revision == commit}
    results = [_result(metric, *sets.get(metric.task, ("", metric.task))) for metric in data.metrics]
    listed = json.dumps([{"name": data.recipe.name, "results": results}])
    return f"model-index: {_SURROGATES.sub('?', listed)}\n"


def _result(metric: Metric, revision: str, dataset: str) -> dict[str, Any]:
    described = {"name": metric.title, "type": dataset} | ({"revision": revision} if revision else {})
    found = {"type": metric.metric, "name": metric.measure, "value": round(metric.quantized, 6)}
    return {"task": {"type": "text-generation"}, "dataset": described, "metrics": [found]}
