"""The figures of an inspection: the paper's channel x token magnitudes, every input by mask ratio, masks apart."""

from __future__ import annotations

import math
from collections.abc import Callable

from qspec.inspect.data import Drawn, Inspection, Positions, Row, largest
from qspec.inspect.summary import INPUT_NAMES, percent, short
from qspec.report.drawing import LABEL, SITE_NAMES, WIDTH, Figure, Scale, block_numbers, peak_of, ridge
from qspec.report.svg import Svg

ROW = 18.0  # height of a row of cells
STRONGEST = 100.0  # crest factor of full colour
CURVES: tuple[tuple[Positions, str], ...] = (("unmasked", "base"), ("masked", "quant"))


def figures(data: Inspection) -> dict[str, Figure]:
    """Every figure by name: `normal` and `massive` where there are such outliers, `overview`, `positions`, `tokens`."""
    found = [magnitudes(drawn) for drawn in data.pictures]
    found += [overview(data), positions(data), spans(data)]
    return {figure.name: figure for figure in found}


def magnitudes(drawn: Drawn) -> Figure:
    """Channel x token magnitudes around the largest outlier of a kind (arXiv 2508.14896, figures 1 and 2)."""
    one = drawn.picture
    last = drawn.first + len(one.magnitudes) * one.token_step - 1
    caption = (
        f"|x| at {one.site}, largest {short(peak_of(one))}; mask ratio {drawn.ratio:g}, sample {drawn.sample}, "
        f"positions {drawn.first} to {last}. Marks at the left: masked positions."
    )
    return Figure(drawn.kind, caption, ridge(one, peak_of(one)))


def overview(data: Inspection) -> Figure:
    """A panel for each mask ratio, a row for each input, a column for each block: the crest factor."""
    cell, tall = (WIDTH - LABEL) / data.subject.blocks, 24 + ROW * len(data.inputs)
    svg = Svg(WIDTH, 16 + tall * len(data.input.ratios), "Crest factor of every input by mask ratio")
    block_numbers(svg, data.subject.blocks)
    for panel, ratio in enumerate(data.input.ratios):
        top = 16 + tall * panel
        svg.text(0, top + 14, f"{percent(ratio)} masked", "t m")
        for place, name in enumerate(data.inputs):
            y = top + 20 + ROW * place
            svg.text(LABEL - 6, y + ROW / 2 + 4, INPUT_NAMES.get(name, name), "t", "end")
            for row in data.at(name, ratio):
                _cell(svg, row, LABEL + cell * row.block, y, cell)
    caption = (
        "Largest magnitude over the root of the mean square, for each input (rows) of each block (columns); stronger "
        "colour, larger. Red: massive outliers; grey: none."
    )
    return Figure("overview", caption, svg)


def _cell(svg: Svg, row: Row, x: float, y: float, width: float) -> None:
    """Stronger for a larger crest factor, with the number where it fits."""
    found = row.found
    depth = min(1.0, max(0.0, math.log(found.crest) / math.log(STRONGEST)))
    css = {"none": "f-base", "normal": "f-accent", "massive": "f-high"}[found.kind]
    tip = (
        f"{found.site}, mask ratio {row.ratio:g}: {found.kind}, crest factor {short(found.crest)}, "
        f"peak {short(found.peak)} in channel {found.top[0].channel}, {percent(found.tokens_spanned)} of tokens"
    )
    svg.rect(x + 0.75, y + 0.75, width - 1.5, ROW - 1.5, css, tip, 0.08 + 0.87 * depth)
    if width >= 26:
        svg.text(x + width / 2, y + ROW / 2 + 3.5, short(found.crest), "t s inv" if depth > 0.6 else "t s", "middle")


def positions(data: Inspection) -> Figure:
    """The largest crest factor of any block along the mask ratio, at masked and at unmasked positions."""
    caption = (
        "The largest crest factor of any block against the mask ratio, over the positions that the model sees as text "
        "and over those that it sees as masks."
    )
    return Figure("positions", caption, _curves(data, "Crest factor by mask ratio", lambda row: row.found.crest, None))


def spans(data: Inspection) -> Figure:
    """Share of tokens that the largest outlier of a block spans, in the block with the largest crest factor."""
    caption = (
        "Percent of tokens at which the largest outlier stands, in the block with the largest crest factor: few in "
        "autoregressive models where it is massive, more in diffusion LLMs."
    )
    drawing = _curves(data, "Tokens spanned by mask ratio", lambda row: 100 * row.found.tokens_spanned, 100.0)
    return Figure("tokens", caption, drawing)


def _curves(data: Inspection, title: str, value: Callable[[Row], float], top: float | None) -> Svg:
    """A panel for each input: the value of the worst block's row along the mask ratio, masked and unmasked apart.

    top: of the vertical scale; None takes each panel's largest value, rounded up.
    """
    width, height = WIDTH / 2, 112.0
    svg = Svg(WIDTH, height * -(-len(data.inputs) // 2), f"{title}, masked and unmasked positions")
    for index, name in enumerate(data.inputs):
        x, y = width * (index % 2), height * (index // 2)
        lines = {
            which: [
                (ratio, value(row)) for ratio in sorted(data.input.ratios) for row in _worst(data, name, ratio, which)
            ]
            for which, _ in CURVES
        }
        most = top or _round_up(max(v for line in lines.values() for _, v in line))
        across, up = Scale(0, 1, x + 38, x + width - 12), Scale(0, most, y + 84, y + 24)
        svg.text(x + 38, y + 14, SITE_NAMES.get(name, name), "t")
        for tick in (0.0, most / 2, most):
            svg.line(x + 38, up(tick), x + width - 12, up(tick), "axis" if tick == 0 else "grid")
            svg.text(x + 32, up(tick) + 4, f"{tick:g}", "t m", "end")
        for ratio in (0.0, 0.5, 1.0):
            svg.text(across(ratio), y + 99, f"{ratio:g}", "t m", "middle")
        for which, css in CURVES:
            points = [(across(ratio), up(v)) for ratio, v in lines[which]]
            svg.polyline(points, f"curve s-{css}")
            for (px, py), (ratio, v) in zip(points, lines[which], strict=True):
                svg.circle(px, py, 2.6, f"f-{css}", f"{which}, mask ratio {ratio:g}: {short(v)}")
    return svg


def _worst(data: Inspection, name: str, ratio: float, which: Positions) -> list[Row]:
    """The row of the block with the largest crest factor; none where no position is of that kind."""
    row = largest(data.at(name, ratio, which))
    return [] if row is None else [row]


def _round_up(value: float) -> float:
    """To 1, 2, 4, 5, 6, 8 or 10 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(value))
    return next(step for step in (1, 2, 4, 5, 6, 8, 10) if value <= step * power) * power
