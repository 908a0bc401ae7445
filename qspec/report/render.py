"""Report data to HTML and Markdown."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup, escape

from qspec.calibrate.outliers import SiteOutliers
from qspec.evaluate.results import Sample, Speed
from qspec.origin import NEVER_RUN, STANDIN_OUTLIERS
from qspec.plan import bits_text
from qspec.report.card import card_with_results
from qspec.report.compare import compared_table
from qspec.report.data import LayerRow, ReportData
from qspec.report.drawing import Figure
from qspec.report.figures import EXACT_DB, mean_bits
from qspec.report.page import render_html, render_markdown
from qspec.report.text import change, drop, paired, score, spread
from qspec.report.verdict import drift, verdict

LAYERS_SHOWN = 1000


@dataclass(frozen=True)
class SchemeSummary:
    """bits: mean over the scheme's weights. rules: the statements that decided its modules."""

    name: str
    label: str
    modules: int
    bits: float
    rules: str


def html(data: ReportData, drawn: Mapping[str, Figure]) -> str:
    """One self-contained page."""
    return render_html("report.html.jinja", FILTERS, _context(data), figures=drawn, sections=_sections(data))


def markdown(data: ReportData) -> str:
    """The short form, for a pull request."""
    fenced = Markup(_fenced(data.recipe.text))
    return render_markdown("report.md.jinja", FILTERS, _context(data), recipe_block=fenced)


def card(original: str, data: ReportData) -> str:
    """The artifact's model card, with these results."""
    return card_with_results(original, FILTERS, _context(data))


def bytes_text(value: float) -> str:
    """1536 -> 1.50 KiB, with three digits."""
    units = ("bytes", "KiB", "MiB", "GiB", "TiB")
    power = 0
    while value >= 1000 and power < len(units) - 1:
        value, power = value / 1024, power + 1
    return f"{value:.0f} bytes" if power == 0 else f"{value:.3g} {units[power]}"


def seconds_text(value: float) -> str:
    """Seconds below two minutes, else minutes."""
    return f"{value:.1f} s" if value < 120 else f"{value / 60:.1f} min"


def speed_text(speed: Speed) -> str:
    """`12.3 ms a step (unquantized 25.0), 640 tokens/s (320), 6.5 texts at once`."""
    steps = f"{speed.quantized:.1f} ms a step (unquantized {speed.baseline:.1f})"
    tokens = f"{speed.quantized_tokens:.0f} tokens/s ({speed.baseline_tokens:.0f})"
    return f"{steps}, {tokens}, {speed.rows:.3g} texts at once"


def _context(data: ReportData) -> dict[str, Any]:
    ratios = sorted(_pairs(data), key=lambda pair: -pair[0].ratio)
    return {
        "data": data,
        "verdict": verdict(data),
        "bits": bits_text(data.bits_per_weight, data.bits_per_weight_model, 3),
        "comparison": compared_table(data),
        "device": "a CPU" if data.execution.startswith("CPU") else data.environment.get("gpu", ""),
        "schemes": _schemes(data.layers),
        "transform_bits": _transform_bits(data),
        "layers": _worst_first(data.layers) if len(data.layers) > LAYERS_SHOWN else data.layers,
        "layer_limit": LAYERS_SHOWN,
        "worst": [layer for layer in _worst_first(data.layers) if _lost(layer)][:5],
        "outlier_rows": ratios,
        "ridge_pairs": _ridge_pairs(data),
        "kl_figures": [f"kl-{i + 1}" if i else "kl" for i in range(len({bucket.text for bucket in data.kl}))],
        "sample_groups": _groups(data.samples),
        "labels": data.labels,
        "standin_notes": f"{STANDIN_OUTLIERS} {NEVER_RUN}",
    }


def _sections(data: ReportData) -> list[tuple[str, str]]:
    found = [("quality", "Quality")]
    if data.compared or data.reference:
        found.append(("recipes", "Recipes"))
    found += [("bits", "Bits"), ("errors", "Layer errors")]
    if data.outliers is not None:
        found.append(("outliers", "Outliers"))
    if data.kl or data.flips:
        found.append(("trajectories", "Trajectories"))
    if data.samples:
        found.append(("samples", "Samples"))
    return [*found, ("recipe", "Recipe"), ("execution", "Execution")]


def _schemes(layers: tuple[LayerRow, ...]) -> list[SchemeSummary]:
    """One row for each scheme, in the order of first use."""
    groups: dict[tuple[str, str], list[LayerRow]] = {}
    for layer in layers:
        groups.setdefault((layer.scheme or "kept", layer.label), []).append(layer)
    out = []
    for (name, label), own in groups.items():
        bits = mean_bits(own)
        rules = dict.fromkeys(layer.rule or "no rule" for layer in own)
        out.append(SchemeSummary(name, label, len(own), bits, "; ".join(rules)))
    return out


def _transform_bits(data: ReportData) -> float:
    """Bits per block weight that the modules' own bits do not explain: rotations and permutations kept online."""
    own = [layer for layer in data.layers if layer.role.startswith("blocks[")]
    return data.bits_per_weight - mean_bits(own) if own else 0.0


def _lost(layer: LayerRow) -> bool:
    return layer.sqnr_db is not None and layer.sqnr_db < EXACT_DB


def _worst_first(layers: tuple[LayerRow, ...]) -> list[LayerRow]:
    return sorted(layers, key=lambda layer: layer.sqnr_db if layer.sqnr_db is not None else EXACT_DB)[:LAYERS_SHOWN]


def _pairs(data: ReportData) -> list[tuple[SiteOutliers, SiteOutliers | None]]:
    if data.outliers is None:
        return []
    after = {row.site: row for row in data.outliers.after}
    return [(row, after.get(row.site)) for row in data.outliers.before]


def _ridge_pairs(data: ReportData) -> list[tuple[str, tuple[str, str]]]:
    """Kind of outlier, and the names of its figures before and after."""
    if data.outliers is None:
        return []
    kinds = {row.site: row.kind for row in data.outliers.before}
    shown = dict.fromkeys(kinds.get(picture.site, "none") for picture in data.outliers.pictures)
    return [(kind, (f"ridge-{kind}-before", f"ridge-{kind}-after")) for kind in shown]


def _groups(samples: tuple[Sample, ...]) -> list[tuple[str, list[Sample]]]:
    groups: dict[str, list[Sample]] = {}
    for sample in samples:
        groups.setdefault(sample.task, []).append(sample)
    return list(groups.items())


def _decibels(value: float | None) -> str:
    if value is None:
        return "–"
    return "exact" if value >= EXACT_DB else f"{value:.1f}"


def _path_name(execution: str) -> str:
    """The first words of the execution path, for the row of facts."""
    name = execution.partition(" (")[0].partition(" on ")[0]
    return name[:1].upper() + name[1:]


def _path_rest(execution: str) -> str:
    """What `_path_name` left out."""
    rest = execution[len(_path_name(execution)) :].strip()
    if rest.startswith("("):
        inner, _, behind = rest[1:].partition(")")
        return inner + behind
    return rest


def _recipe(text: str) -> Markup:
    """Escaped, with comments set apart."""
    lines = []
    for line in text.splitlines():
        code, mark, comment = _comment(line)
        lines.append(escape(code) + (Markup('<span class="c">{}</span>').format(mark + comment) if mark else ""))
    return Markup("\n").join(lines)


def _comment(line: str) -> tuple[str, str, str]:
    """(code, "#", comment); a # in quotes starts none."""
    quoted = False
    for place, character in enumerate(line):
        if character == '"' and line[place - 1 : place] != "\\":
            quoted = not quoted
        if character == "#" and not quoted:
            return line[:place], "#", line[place + 1 :]
    return line, "", ""


def _fenced(text: str) -> str:
    """A code block whose fence is longer than any run of backticks in the text."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}\n{text.rstrip()}\n{fence}"


FILTERS: Mapping[str, Callable[..., Any]] = {
    "bytes": bytes_text,
    "seconds": seconds_text,
    "speed": speed_text,
    "score": score,
    "change": change,
    "drift": drift,
    "css": lambda tier: tier.replace(" ", "-"),
    "drop": drop,
    "paired": paired,
    "spread": spread,
    "decibels": _decibels,
    "unbroken": lambda text: text.replace(" %", "\u00a0%"),
    "path_name": _path_name,
    "path_rest": _path_rest,
    "recipe": _recipe,
}
