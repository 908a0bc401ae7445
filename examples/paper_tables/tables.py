"""The paper's tables from the results of a grid: Markdown, and one self-contained HTML page."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cells import SETTINGS

from qspec.evaluate.results import size, task_label

TIER_MARKS = {"within noise": "", "better": "", "small": "", "medium": " ▾", "large": " ▼", "undefined": " ?"}
BITS = ("bits, blocks", "bits, model")
LEGEND = (
    "Losses relative to the unquantized model: ▾ medium, 1 to 4 %, ▼ large, above 4 %; unmarked below 1 % and where a "
    "paired test over the items does not show them (averages are marked by size alone)."
)


@dataclass(frozen=True)
class Row:
    """setting: w4a4, or FP for the unquantized model. values: column -> (text, tier)."""

    setting: str
    method: str
    values: dict[str, tuple[str, str]]


@dataclass(frozen=True)
class Table:
    title: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]


def make_table(model: str, results: Sequence[dict[str, Any]]) -> Table:
    """One row for the unquantized model and one for each result, grouped by setting.

    results: of run.py, all of one model. A task's column is its first accuracy, in percent; `average` is over tasks.
    """
    ordered = sorted(results, key=lambda r: SETTINGS.index(r["setting"]))
    columns = tuple(dict.fromkeys(_column(m) for r in ordered for m in first_metrics(r["metrics"])))
    columns = (*columns, "average", *BITS)
    first = ordered[0]
    rows = [Row("FP", "unquantized", _values(first["metrics"], "baseline") | _bits(16, 16))]
    for r in ordered:
        bits = _bits(r["bits_per_weight"], r["bits_per_weight_model"])
        rows.append(Row(r["setting"], r["method"], _values(r["metrics"], "quantized") | bits))
    return Table(model, columns, tuple(rows))


def first_metrics(metrics: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The NELBO, and for each task the accuracy that stands first."""
    first: dict[str, dict[str, Any]] = {}
    for metric in metrics:
        first.setdefault(_column(metric), metric)
    return list(first.values())


def _column(metric: dict[str, Any]) -> str:
    return "NELBO" if metric["metric"] == "nelbo" else task_label(metric["task"], metric["source"])


def _bits(blocks: float, model: float) -> dict[str, tuple[str, str]]:
    return {name: (f"{bits:.2f}", "small") for name, bits in zip(BITS, (blocks, model), strict=True)}


def _values(metrics: Sequence[dict[str, Any]], which: str) -> dict[str, tuple[str, str]]:
    values, scores, before = {}, [], []
    for metric in first_metrics(metrics):
        own = metric["tier"] if which == "quantized" else "small"
        if metric["metric"] == "nelbo":
            values["NELBO"] = (f"{metric[which]:.4f}", own)
            continue
        values[_column(metric)] = (f"{100 * metric[which]:.1f}", own)
        scores.append(metric[which])
        before.append(metric["baseline"])
    if scores:
        drop = round(100 * (1 - sum(scores) / sum(before)), 9) if sum(before) else None
        values["average"] = (f"{100 * sum(scores) / len(scores):.1f}", size(drop))
    return values


def markdown(tables: Sequence[Table]) -> str:
    """Every table with its title; tiers as marks."""
    parts = []
    for table in tables:
        lines = [f"## {table.title}", "", "| setting | method | " + " | ".join(table.columns) + " |"]
        lines.append("|---|---|" + "---|" * len(table.columns))
        for row in table.rows:
            cells = [_marked(row, column) for column in table.columns]
            lines.append(f"| {row.setting.upper()} | {row.method} | " + " | ".join(cells) + " |")
        parts.append("\n".join(lines))
    return "\n\n".join([*parts, LEGEND]) + "\n"


def _marked(row: Row, column: str) -> str:
    text, tier = row.values.get(column, ("", "small"))
    return f"{text}{TIER_MARKS[tier]}"


STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; padding: 0 1rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .7rem; text-align: right; border-bottom: 1px solid #8884; }
th:nth-child(-n+2), td:nth-child(-n+2) { text-align: left; }
tr.first td { border-top: 2px solid #888; }
.medium { background: #e0a80040; }
.large { background: #d0402040; }
"""


def page(tables: Sequence[Table]) -> str:
    """An HTML page that needs nothing else."""
    body = "".join(f"<h2>{html.escape(t.title)}</h2><div class=wide>{_html_table(t)}</div>" for t in tables)
    return (
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        f"<title>Quantization tables</title><style>{STYLE}</style><h1>Quantization tables</h1>{body}"
        "<p>Losses are relative to the unquantized model: <span class=medium>medium</span>, 1 to 4 %; "
        "<span class=large>large</span>, above 4 %; no colour below 1 %, and where a paired test over the items does "
        "not show them. Averages are coloured by size alone.</p></html>\n"
    )


def _html_table(table: Table) -> str:
    head = "".join(f"<th>{html.escape(name)}</th>" for name in ("setting", "method", *table.columns))
    lines, last = [], ""
    for row in table.rows:
        cells = [f"<td>{html.escape(row.setting.upper())}</td><td>{html.escape(row.method)}</td>"]
        for column in table.columns:
            text, tier = row.values.get(column, ("", "small"))
            cells.append(f"<td class='{tier}'>{html.escape(text)}</td>")
        lines.append(f"<tr{' class=first' if row.setting != last else ''}>{''.join(cells)}</tr>")
        last = row.setting
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"
