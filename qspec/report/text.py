"""The few lines that a terminal or a notebook shows: verdict, stand-in, metrics."""

from __future__ import annotations

from html import escape

from qspec.evaluate.results import Metric
from qspec.evaluate.statistics import wilson
from qspec.origin import STANDIN_OUTLIERS
from qspec.plan.text import html_table
from qspec.report.data import ReportData
from qspec.report.verdict import verdict

_HEAD = ("task", "measure", "unquantized", "quantized", "drop", "loss", "n")
_LEFT = (0, 1, 5)  # columns of words


def summary(data: ReportData) -> str:
    """Verdict, a line on the stand-in, the table of metrics, what was not measured."""
    lines = _said(data)
    if data.metrics:
        lines += ["", *_table([_HEAD, *map(_row, data.metrics)])]
    return "\n".join([*lines, *data.not_measured])


def summary_html(data: ReportData) -> str:
    """The same for a notebook."""
    headline, *others = _said(data)
    table = [html_table(_HEAD, [_row(metric) for metric in data.metrics])] if data.metrics else []
    lines = [f"<p>{escape(line)}</p>" for line in others]
    return "\n".join([f"<p><b>{escape(headline)}</b></p>", *lines, *table, *map(escape, data.not_measured)])


def _said(data: ReportData) -> list[str]:
    """The verdict, and what the model is where it stands in for another."""
    found = verdict(data)
    lines = [found.headline, *(f"{detail}." for detail in found.details)]
    if data.model.standin:
        lines.append(f"Measured on the stand-in {data.model.id}, not on a real {data.model.family} checkpoint.")
        lines.append(STANDIN_OUTLIERS)
    return lines


def score(value: float, metric: str) -> str:
    """Nats per token with four decimals, shares as percent."""
    return f"{value:.4f}" if metric == "nelbo" else f"{100 * value:.1f} %"


def spread(metric: Metric, value: float, stderr: float) -> str:
    """How sure one model's score is: a share's 95 % interval, the standard error of a NELBO."""
    if metric.metric == "nelbo":
        return f"± {stderr:.4f}"
    low, high = wilson(value, metric.n)
    return f"{100 * low:.1f}–{100 * high:.1f} %"


def change(value: float, metric: str) -> str:
    """The difference of two scores, signed."""
    return ("−" if value < 0 else "+") + score(abs(value), metric)


def paired(metric: Metric) -> str:
    """The 95 % interval of the difference."""
    if metric.interval is None:
        return "on one item"
    low, high = (change(end, metric.metric) for end in metric.interval)
    return f"{low.removesuffix(' %')} to {high}"


def drop(value: float | None) -> str:
    """One decimal; a dash where the unquantized model scored 0."""
    if value is None:
        return "–"
    return f"{round(value, 1) + 0.0:.1f} %".replace("-", "−")


def _row(metric: Metric) -> tuple[str, ...]:
    return (
        metric.label,
        metric.measure,
        score(metric.baseline, metric.metric),
        score(metric.quantized, metric.metric),
        drop(metric.drop_percent),
        metric.tier,
        str(metric.n),
    )


def _table(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  " + "  ".join(_cells(row, widths)).rstrip() for row in rows]


def _cells(row: tuple[str, ...], widths: list[int]) -> list[str]:
    return [
        cell.ljust(width) if index in _LEFT else cell.rjust(width)
        for index, (cell, width) in enumerate(zip(row, widths, strict=True))
    ]
