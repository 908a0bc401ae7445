"""A sweep's figures: for each group of settings, how much of the texts changes as the passes get fewer."""

from __future__ import annotations

import math
from collections.abc import Sequence

from qspec.report.drawing import WIDTH, Figure, Scale
from qspec.report.svg import Svg
from qspec.sweep import Cell, Sweep


def figures(data: Sweep) -> dict[str, Figure]:
    """By name, one for each group."""
    drawn = [_lines(f"steps-{place}", *group) for place, group in enumerate(data.groups.items(), 1)]
    return {figure.name: figure for figure in drawn}


def _lines(name: str, group: str, cells: Sequence[Cell]) -> Figure:
    """Passes to the right, logarithmic; share of changed tokens upwards; the band is what is beyond the expected."""
    passes = [math.log2(cell.passes) for cell in cells]
    across = Scale(min(passes), max(passes) if max(passes) > min(passes) else min(passes) + 1, 46, WIDTH - 16)
    most = max(max(cell.quantized, cell.expected) for cell in cells)
    up = Scale(0, max(0.1, math.ceil(10 * most) / 10), 170, 14)
    svg = Svg(WIDTH, 212, "Changed tokens by number of forward passes")
    for part in range(3):
        share = up.high * part / 2
        svg.line(46, up(share), WIDTH - 16, up(share), "grid" if part else "axis")
        svg.text(40, up(share) + 4, f"{100 * share:.0f} %", "t m", "end")
    for cell, x in zip(cells, passes, strict=True):
        svg.text(across(x), 186, f"{cell.passes:.0f}", "t m", "middle")
        if cell.finding == "hurt each other":
            top, bottom = up(cell.quantized), up(cell.expected)
            svg.rect(across(x) - 4, top, 8, bottom - top, "f-poor", cell.finding)
    svg.text(WIDTH - 16, 204, "forward passes a text", "t m", "end")
    for css, values in (
        ("s-base", [cell.unquantized for cell in cells]),
        ("s-third", [cell.expected for cell in cells]),
        ("s-quant", [cell.quantized for cell in cells]),
    ):
        points = [(across(x), up(value)) for x, value in zip(passes, values, strict=True)]
        svg.polyline(points, f"curve {css}")
        for (px, py), value in zip(points, values, strict=True):
            svg.circle(px, py, 3, css.replace("s-", "f-"), f"{100 * value:.1f} %")
    caption = f"Share of tokens that differ from the reference{f', {group}' if group else ''}."
    return Figure(name, caption, svg)
