"""A search's figures: what each unit loses under each scheme, and loss against bits."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from qspec.report.drawing import LABEL, WIDTH, Figure, Scale, block_numbers
from qspec.report.svg import Svg
from qspec.search.run import FoundLayout, Outcome, Sensitivity
from qspec.search.space import Layout

FLOOR = 1e-6  # of a loss that is drawn: below it nothing was lost
ROW = 16.0


def figures(outcome: Outcome) -> dict[str, Figure]:
    """By name: the Pareto curve, and a heat map for each scheme."""
    names = list(dict.fromkeys(sensitivity.scheme for sensitivity in outcome.sensitivities))
    drawn = [pareto(outcome)] if len(outcome.curve) > 1 else []
    drawn += [sensitivity_map(outcome.sensitivities, name) for name in names]
    return {figure.name: figure for figure in drawn}


def pareto(outcome: Outcome) -> Figure:
    """Predicted loss of the solver's layouts as a line; what the layouts found and their rivals lose as dots."""
    points = [(bits, max(loss, FLOOR)) for bits, loss in outcome.curve]
    dots = [
        (outcome.space.planned(layout).bits_per_weight, max(loss, FLOOR), style, f"{found.budget}: {name}")
        for found in outcome.found
        for layout, loss, style, name in _dots(found)
    ]
    losses = [loss for _, loss in points] + [loss for _, loss, _, _ in dots]
    low, high = math.floor(math.log10(min(losses))), math.ceil(math.log10(max(losses)) + 1e-9)
    across = Scale(min(b for b, _ in points), max(b for b, _ in points), 46, WIDTH - 14)
    up = Scale(low, max(high, low + 1), 172, 14)
    svg = Svg(WIDTH, 212, "Loss against bits per weight")
    for power in range(low, max(high, low + 1) + 1):
        svg.line(46, up(power), WIDTH - 14, up(power), "axis" if power == low else "grid")
        svg.text(40, up(power) + 4, f"{10.0**power:g}", "t m", "end")
    whole = range(math.ceil(across.low), math.floor(across.high) + 1)
    for tick in whole[:: 1 + len(whole) // 8]:
        svg.text(across(tick), 188, str(tick), "t m", "middle")
    svg.text(WIDTH - 14, 204, "bits per weight in the blocks", "t m", "end")
    svg.polyline([(across(b), up(math.log10(loss))) for b, loss in points], "curve s-base")
    for bits, loss, style, name in dots:
        svg.circle(across(bits), up(math.log10(loss)), 4, style, f"{name}, {bits:.4f} bits, measured {loss:.4g}")
    caption = (
        "Line: predicted loss of the solver's layout at each budget. Dots: measured loss, in strong colour of the "
        "layouts found, else of a uniform one and of one with dear first and last blocks."
    )
    return Figure("pareto", caption, svg)


def _dots(found: FoundLayout) -> Iterator[tuple[Layout, float, str, str]]:
    """Rivals, and over them the layout found."""
    for layout in found.measured:
        if layout.origin not in ("solver", "neighbour") and layout.layout != found.layout:
            yield layout.layout, layout.loss, "f-base", layout.origin
    if found.loss is not None:
        yield found.layout, found.loss, "f-quant", "found"


def sensitivity_map(sensitivities: Sequence[Sensitivity], scheme: str) -> Figure:
    """A row for each unit's linears, a column for each block; darker loses more, by powers of ten."""
    own = [sensitivity for sensitivity in sensitivities if sensitivity.scheme == scheme]
    rows = list(dict.fromkeys(sensitivity.target.parts for sensitivity in own))
    blocks = max(sensitivity.target.block for sensitivity in own) + 1
    every = [math.log10(max(sensitivity.loss.mean, FLOOR)) for sensitivity in sensitivities]
    low, high = min(every), max(every)
    cell = (WIDTH - LABEL) / blocks
    svg = Svg(WIDTH, 18 + ROW * len(rows) + 6, f"Loss of each layer alone in {scheme}")
    block_numbers(svg, blocks)
    for index, parts in enumerate(rows):
        names = ", ".join(dict.fromkeys(part.rpartition(".")[2] for part in parts))
        names = next((f"{kind} {names}" for kind in ("experts", "shared") if f".{kind}" in parts[0]), names)
        svg.text(LABEL - 6, 18 + ROW * index + 12, names, "t", "end")
    for sensitivity in own:
        depth = (math.log10(max(sensitivity.loss.mean, FLOOR)) - low) / ((high - low) or 1.0)
        x, y = LABEL + cell * sensitivity.target.block, 18 + ROW * rows.index(sensitivity.target.parts)
        tip = f"{sensitivity.target} in {scheme}: {sensitivity.loss.mean:.4g}"
        svg.rect(x + 0.75, y + 0.75, cell - 1.5, ROW - 1.5, "f-accent", tip, 0.05 + 0.9 * depth)
    caption = f"Loss with one layer alone in {scheme}. Columns are blocks; stronger colour, more loss (logarithmic)."
    return Figure(f"sensitivity-{scheme}", caption, svg)
