"""A benchmark as Markdown, JSON and a drawing."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from qspec.bench.data import BASE, WITH_INPUT, Bench, Cell, ran_on
from qspec.errors import InputError
from qspec.files import write_whole
from qspec.report.page import asset
from qspec.report.svg import Svg

HEIGHT, WIDTH, LEFT, TOP = 150.0, 150.0, 30.0, 30.0  # of one shape's curves
CURVES = 4  # line colours
DOTS = ("f-quant", "f-third", "f-high", "f-base")


def write_bench(bench: Bench, folder: Path) -> None:
    """bench.md, bench.json, and two drawings: speedup.svg, roofline.svg."""
    write_whole(folder / "bench.json", json.dumps(bench.as_json(), indent=1) + "\n")
    write_whole(folder / "bench.md", markdown(bench))
    write_whole(folder / "speedup.svg", curves(bench).standalone(asset("palette.css")))
    write_whole(folder / "roofline.svg", roofline(bench).standalone(asset("palette.css")))


def fill(document: Path, mark: str, text: str) -> None:
    """Puts a text between a document's `<!-- mark -->` and `<!-- /mark -->`. Errors: as `around`."""
    before, after = around(document, mark)
    write_whole(document, f"{before}\n\n{text}\n{after}")


def around(document: Path, mark: str) -> tuple[str, str]:
    """What stands before and after the place for a text, marks included. Raises InputError where there is none."""
    start, end = f"<!-- {mark} -->", f"<!-- /{mark} -->"
    try:
        before, first, rest = document.read_text(encoding="utf-8").partition(start)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"the document cannot be read: {error}", where=str(document)) from None
    _, last, after = rest.partition(end)
    if not (first and last):
        raise InputError(f"no {start} .. {end} to write between", where=str(document))
    return f"{before}{start}", f"{end}{after}"


def markdown(bench: Bench) -> str:
    """One table for each format: microseconds, rates, the share of the nearer limit, ratios; above 1 we are faster."""
    lines = [
        ran_on(bench.environment),
        f"copy {bench.copy:.0f} GB/s, cuBLAS bf16 {bench.arithmetic:.0f} TFLOP/s at 8192 x 8192 x 8192. Microseconds, "
        "medians of CUDA graphs that rotate through cold weights. `with input`: activation quantization included, as "
        "in the peers that say so. `over best peer`: the smallest ratio, with input for us where the peer has it.",
    ]
    for fmt, cells in _by_format(bench.cells):
        names = list(dict.fromkeys(name for cell in cells for name in cell.others))
        peers = [f"{name}, with input" if name in WITH_INPUT else name for name in names]
        head = ["N x K", "M", "us", "with input", "GB/s", "TFLOP/s", "of limit", "over bf16", "over best peer", *peers]
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


def roofline(bench: Bench) -> Svg:
    """Operations a second over operations a byte, both axes logarithmic, under the roofs of memory and arithmetic."""
    formats = list(dict.fromkeys(cell.format for cell in bench.cells))
    points = [(2 * c.tokens * c.channels * c.columns / c.bytes_moved, c.tera_per_second, c) for c in bench.cells]
    roof = max((bench.peak(fmt) for fmt in formats), default=bench.arithmetic)
    low, high = (
        math.floor(math.log2(min(x for x, _, _ in points))),
        math.ceil(math.log2(max(x for x, _, _ in points))),
    )
    bottom, top = math.floor(math.log2(min(y for _, y, _ in points))), math.log2(roof) + 0.5
    width, height = 480.0, 260.0

    def at(x: float, y: float) -> tuple[float, float]:
        across, up = (math.log2(x) - low) / (high - low), (math.log2(y) - bottom) / (top - bottom)
        return LEFT + 20 + width * across, TOP + height * (1 - up)

    svg = Svg(width + LEFT + 40, TOP + height + 56, f"Roofline on {bench.environment['gpu']}")
    svg.text(LEFT + 20, TOP - 14, "10^12 operations a second, by operations a byte")
    for power in range(low, high + 1, 2):
        x, y = at(2.0**power, 2.0**bottom)
        svg.line(x, TOP, x, y, "grid")
        svg.text(x, y + 14, str(2**power) if power >= 0 else f"1/{2**-power}", "t s m", "middle")
    for power in range(bottom, int(top) + 1, 2):
        x, y = at(2.0**low, 2.0**power)
        svg.line(x, y, x + width, y, "grid")
        svg.text(x - 6, y + 4, str(2**power) if power >= 0 else f"1/{2**-power}", "t s m", "end")
    for peak in sorted({bench.peak(fmt) for fmt in formats}):
        corner = peak / bench.copy * 1e3  # operations a byte from which on arithmetic is the nearer limit
        start = max(2.0**low, 2.0**bottom / bench.copy * 1e3)
        svg.polyline([at(start, start * bench.copy / 1e3), at(corner, peak), at(2.0**high, peak)], "curve c3")
    for x, y, cell in points:
        tip = f"{cell.format} {cell.channels} x {cell.columns}, M {cell.tokens}: {bench.limit(cell):.0%} of the limit"
        svg.circle(*at(x, y), 3.5, DOTS[formats.index(cell.format) % CURVES], tip)
    for index, fmt in enumerate(formats):
        x, y = LEFT + 30 + 100 * index, TOP + height + 40
        svg.circle(x, y - 4, 3.5, DOTS[index % CURVES])
        svg.text(x + 8, y, fmt, "t s")
    return svg


def _height(ratio: float, top: float) -> float:
    return TOP + HEIGHT * (1 - ratio / top)


def _by_format(cells: Sequence[Cell]) -> list[tuple[str, list[Cell]]]:
    return [(fmt, list(group)) for fmt, group in groupby(cells, lambda cell: cell.format)]
