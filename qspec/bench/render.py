"""A benchmark as Markdown, JSON and a drawing."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from itertools import groupby
from pathlib import Path

from qspec.bench.data import BASE, Bench, Cell
from qspec.files import write_whole
from qspec.report.page import asset
from qspec.report.svg import Svg

HEIGHT, WIDTH, LEFT, TOP = 150.0, 150.0, 30.0, 30.0  # of one shape's curves
CURVES = 4  # line colours


def write_bench(bench: Bench, folder: Path) -> None:
    """bench.md, bench.json and bench.svg."""
    write_whole(folder / "bench.json", json.dumps(as_json(bench), indent=1) + "\n")
    write_whole(folder / "bench.md", markdown(bench))
    write_whole(folder / "bench.svg", curves(bench).standalone(asset("palette.css")))


def as_json(bench: Bench) -> dict[str, object]:
    """Everything measured, with the figures that follow from it."""
    cells = [
        {
            **asdict(cell),
            "gigabytes_per_second": round(cell.gigabytes_per_second, 1),
            "tera_per_second": round(cell.tera_per_second, 1),
            "share_of_limit": round(bench.limit(cell), 3),
        }
        for cell in bench.cells
    ]
    return {**asdict(bench), "cells": cells}


def markdown(bench: Bench) -> str:
    """One table for each format: microseconds, rates, the share of the nearer limit, ratios; above 1 we are faster."""
    lines = [
        f"{bench.environment['gpu']}, " + ", ".join(f"{k} {bench.environment[k]}" for k in ("torch", "triton")),
        f"copy {bench.copy:.0f} GB/s, cuBLAS bf16 {bench.arithmetic:.0f} TFLOP/s at 8192 x 8192 x 8192. Microseconds, "
        "medians of CUDA graphs that rotate through cold weights; `with input` has the row kernel before it too.",
    ]
    for fmt, cells in _by_format(bench.cells):
        names = list(dict.fromkeys(name for cell in cells for name in cell.others))
        head = ["N x K", "M", "us", "with input", "GB/s", "TFLOP/s", "of limit", "over bf16", "over best peer", *names]
        lines += ["", f"**{fmt}**", "", f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
        lines += [f"| {' | '.join(_row(bench, cell, names))} |" for cell in cells]
    lines += [f"\n{name} did not run: {why}" for name, why in bench.failed.items()]
    return "\n".join(lines) + "\n"


def _row(bench: Bench, cell: Cell, names: Sequence[str]) -> list[str]:
    peer = cell.best_peer
    return [
        f"{cell.channels} x {cell.columns}",
        str(cell.tokens),
        f"{cell.microseconds:.1f}",
        f"{cell.whole:.1f}",
        f"{cell.gigabytes_per_second:.0f}",
        f"{cell.tera_per_second:.0f}",
        f"{bench.limit(cell):.0%}",
        f"{cell.over(BASE):.2f}" if BASE in cell.others else "",
        f"{cell.over(peer):.2f}" if peer else "",
        *(f"{cell.others[name]:.1f}" if name in cell.others else "" for name in names),
    ]


def curves(bench: Bench) -> Svg:
    """Times faster than cuBLAS bf16 by the number of tokens: a panel for each shape, a line for each format."""
    shapes = list(dict.fromkeys((cell.channels, cell.columns) for cell in bench.cells))
    formats = list(dict.fromkeys(cell.format for cell in bench.cells))
    counts = sorted({cell.tokens for cell in bench.cells})
    top = max((cell.over(BASE) for cell in bench.cells if BASE in cell.others), default=1.0)
    step = WIDTH / max(1, len(counts) - 1)
    panel = WIDTH + LEFT + 16
    title = f"Times faster than {BASE}, by tokens M, on {bench.environment['gpu']}"
    svg = Svg(panel * max(1, len(shapes)), TOP + HEIGHT + 40, title)
    for number, shape in enumerate(shapes):
        x0 = panel * number + LEFT
        svg.text(x0, TOP - 14, f"{shape[0]} x {shape[1]}")
        for ratio in range(int(top) + 1):
            y = _height(ratio, top)
            svg.line(x0, y, x0 + WIDTH, y, "axis" if ratio == 1 else "grid")
            svg.text(x0 - 6, y + 4, str(ratio), "t s m", "end")
        for place, count in enumerate(counts):
            svg.text(x0 + step * place, TOP + HEIGHT + 14, str(count), "t s m", "middle")
        for index, fmt in enumerate(formats):
            points = [
                (x0 + step * counts.index(cell.tokens), _height(cell.over(BASE), top))
                for cell in bench.cells
                if (cell.channels, cell.columns) == shape and cell.format == fmt and BASE in cell.others
            ]
            svg.polyline(points, f"curve c{index % CURVES}")
            if not number:
                x, y = x0 + 90 * index, TOP + HEIGHT + 30
                svg.polyline([(x - 14, y - 3), (x - 3, y - 3)], f"curve c{index % CURVES}")
                svg.text(x, y, fmt, "t s")
    return svg


def _height(ratio: float, top: float) -> float:
    return TOP + HEIGHT * (1 - ratio / top)


def _by_format(cells: Sequence[Cell]) -> list[tuple[str, list[Cell]]]:
    return [(fmt, list(group)) for fmt, group in groupby(cells, lambda cell: cell.format)]
