"""Other recipes' results on the same checkpoint, for the report of one artifact: which fit, and the table of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from qspec.errors import InputError
from qspec.evaluate.results import Metric, Tier, task_scores
from qspec.report.data import Compared, ReportData


@dataclass(frozen=True)
class ComparedRow:
    """name: the recipe's, None for the unquantized model. bits: of the blocks; model_bits: of the whole model. own:
    the report's own artifact. cells: (score, tier), None where the recipe has no such result; the unquantized model's
    have no tier."""

    name: str | None
    bits: float
    model_bits: float
    own: bool
    cells: tuple[tuple[float, Tier | None] | None, ...]


@dataclass(frozen=True)
class ComparedTable:
    """columns: a NELBO for each text, one accuracy for each task; each as the first recipe that has it measured it."""

    columns: tuple[Metric, ...]
    rows: tuple[ComparedRow, ...]


def compare(data: ReportData, results: Sequence[Path]) -> ReportData:
    """The report with the results in the files in place of those that it compared before.

    results: each another artifact's report.json, or a grid's results.json, of which the list of the same checkpoint is
    taken. An artifact is listed once, this one not at all. Errors: InputError where a file is not such results, or has
    none of this checkpoint.
    """
    found: dict[str, Compared] = {}
    for path in results:
        same = [one for one in _read(path) if _checkpoint(one) == _checkpoint(data)]
        if not same:
            raise InputError(
                f"no result of {data.model.id}, the checkpoint that was compiled here",
                where=str(path),
                hint="give results of recipes that were compiled from the same checkpoint files",
            )
        for one in same:
            entry = _entry(one)
            found[entry.manifest] = entry
    found.pop(data.hashes.get("manifest", ""), None)
    return replace(data, compared=tuple(found.values()))


def compared_table(data: ReportData) -> ComparedTable | None:
    """The unquantized model, then all recipes from the most bits to the fewest; None where nothing is compared.

    Results stand in one column where task, measure, title and number of items agree.
    """
    own, others = _entry(data), [*only_rounded(data), *data.compared]
    if not others:
        return None
    entries = sorted((own, *others), key=lambda entry: -entry.bits_per_weight)
    columns: dict[tuple[Any, ...], Metric] = {}
    for metric in (metric for entry in (own, *others) for metric in _shown(entry.metrics)):
        columns.setdefault(_column(metric), metric)
    rows = [ComparedRow(None, 16.0, 16.0, False, tuple((metric.baseline, None) for metric in columns.values()))]
    for entry in entries:
        cells = {_column(metric): (metric.quantized, metric.tier) for metric in _shown(entry.metrics)}
        own_cells = tuple(cells.get(key) for key in columns)
        rows.append(
            ComparedRow(entry.name, entry.bits_per_weight, entry.bits_per_weight_model, entry is own, own_cells)
        )
    return ComparedTable(tuple(columns.values()), tuple(rows))


def only_rounded(data: ReportData) -> list[Compared]:
    """The report's own schemes rounded to nearest, where that was measured."""
    found = data.reference
    if found is None:
        return []
    bits = (found.bits_per_weight, found.bits_per_weight_model)
    return [Compared(f"{data.recipe.name}, only rounded (RTN)", "", *bits, found.metrics)]


def _read(path: Path) -> list[ReportData]:
    """The reports in a report.json or a grid's results.json, which is model -> list of reports."""
    content = ReportData.content(path)
    if "format" in content:
        return [ReportData.of(content, path)]
    if not content or not all(isinstance(value, list) for value in content.values()):
        raise InputError(
            "neither a report.json nor the results.json of a grid",
            where=str(path),
            hint="give ARTIFACT/report/report.json, or what examples/paper_tables/run.py wrote",
        )
    return [ReportData.of(one, path) for reports in content.values() for one in reports]


def _entry(data: ReportData) -> Compared:
    return Compared(
        data.recipe.name,
        data.hashes.get("manifest", ""),
        data.bits_per_weight,
        data.bits_per_weight_model,
        tuple(replace(metric, items=()) for metric in data.metrics),
    )


def _checkpoint(data: ReportData) -> dict[str, str]:
    """The hashes of the files that were compiled: two names may be one checkpoint, and one name two."""
    return {name: digest for name, digest in data.hashes.items() if name.startswith("checkpoint ")}


def _shown(metrics: Sequence[Metric]) -> list[Metric]:
    return [*(metric for metric in metrics if metric.metric == "nelbo"), *task_scores(metrics)]


def _column(metric: Metric) -> tuple[Any, ...]:
    return metric.task, metric.metric, metric.title, metric.n
