"""What every figure shares: size, scales, names of inputs, and the ridge lines of channel x token magnitudes."""

from __future__ import annotations

import re
from dataclasses import dataclass

from markupsafe import Markup

from qspec.calibrate.outliers import Picture
from qspec.report.svg import Svg, number

WIDTH = 360.0
LABEL = 62.0  # room for row labels at the left
ROLE = re.compile(r"blocks\[(\d+)\]\.(.+)")
_INDEX = re.compile(r"\[\d+\]")

SITE_NAMES = {
    "attention.input": "input of q, k, v",
    "attention.mixed": "input of o",
    "mlp.input": "input of gate, up",
    "mlp.gated": "input of down",
    "mlp.experts.gated": "input of experts' down",
    "mlp.shared.gated": "input of the shared down",
}


@dataclass(frozen=True)
class Figure:
    """name: file name without ending."""

    name: str
    caption: str
    svg: Svg


def ridge(picture: Picture, scale: float) -> Svg:
    """Channel x token magnitudes: rows of tokens from back to front, each hiding what stands behind it.

    scale: the magnitude that is drawn in full height. Rows of masked tokens have a mark at their left.
    """
    rows, columns = len(picture.magnitudes), max(1, len(picture.magnitudes[0]) - 1)
    tall, floor, left = 96.0, 208.0, 14.0
    across, back, shift = 272 / columns, 96 / max(1, rows), 52 / max(1, rows)
    svg = Svg(WIDTH, 232, f"Magnitudes of channels and tokens at {picture.site}, {picture.stage}")
    name = f"ramp-{picture.stage}-{re.sub('[^a-z0-9]+', '-', picture.site.lower())}"
    stops = Markup("").join(
        Markup('<stop offset="{}" class="{}"/>').format(offset, css)
        for offset, css in (("0", "ramp-low"), ("0.12", "ramp-mid"), ("0.6", "ramp-high"))
    )
    gradient = '<defs><linearGradient id="{}" gradientUnits="userSpaceOnUse" x1="0" y1="0" x2="0" y2="{}">{}'
    svg.raw(Markup(gradient + "</linearGradient></defs>").format(name, number(-tall), stops))
    for row in reversed(range(rows)):
        values = picture.magnitudes[row]
        line = " ".join(
            f"{number(across * column)} {-tall * min(1.0, value / (scale or 1.0)):.1f}"
            for column, value in enumerate(values)
        )
        if picture.masked and picture.masked[row] > 0:
            svg.rect(left + shift * row - 9, floor - back * row - 2.2, 6, 2.2, "f-third", "", picture.masked[row])
        svg.raw(
            Markup('<path class="ridge" transform="translate({} {})" stroke="url(#{})" d="M0 0L{}L{} 0"/>').format(
                number(left + shift * row), number(floor - back * row), name, line, number(across * columns)
            )
        )
    _height_scale(svg, left - 6, floor, tall, scale)
    if peak_of(picture) < scale / 3:
        _inset(svg, picture)
    svg.text(left, floor + 16, "channel 0", "t m")
    svg.text(left + 272, floor + 16, str(len(picture.magnitudes[0]) * picture.channel_step - 1), "t m", "end")
    svg.text(left + 272 + shift * rows * 0.55 + 8, floor - back * rows * 0.45, "tokens", "t m")
    return svg


def _height_scale(svg: Svg, x: float, floor: float, tall: float, scale: float) -> None:
    """What a height means: a line at the front's left from 0 to the magnitude that is drawn in full height."""
    svg.line(x, floor, x, floor - tall, "axis")
    for share in (0.0, 0.5, 1.0):
        svg.line(x - 3, floor - tall * share, x, floor - tall * share, "axis")
        svg.text(x + 3, floor - tall * share + (10 if share else -3), f"{scale * share:.3g}", "t m s")


def _inset(svg: Svg, picture: Picture) -> None:
    """The largest magnitude of each channel at the picture's own scale, where the common one leaves it flat."""
    left, top, width, height = WIDTH - 118.0, 4.0, 112.0, 44.0
    peaks, own = [max(column) for column in zip(*picture.magnitudes, strict=True)], peak_of(picture) or 1.0
    step = width / max(1, len(peaks) - 1)
    svg.rect(left, top, width, height, "inset")
    svg.polyline([(left + step * i, top + height * (1 - peak / own)) for i, peak in enumerate(peaks)], "curve s-quant")
    svg.text(left + 4, top + 11, f"own scale, to {own:.3g}", "t m s")


def block_numbers(svg: Svg, blocks: int) -> None:
    """The blocks' numbers above their columns, between the row labels and the right edge; some are left out if many."""
    column = (WIDTH - LABEL) / max(1, blocks)
    for block in range(blocks):
        if block == blocks - 1 and column < 16:
            svg.text(WIDTH, 12, str(block), "t m", "end")
        elif blocks <= 16 or block % 4 == 0 or block == blocks - 1:
            svg.text(LABEL + column * (block + 0.5), 12, str(block), "t m", "middle")


@dataclass(frozen=True)
class Scale:
    """Maps low..high onto start..end."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / ((self.high - self.low) or 1) * (self.end - self.start)

    def ticks(self, most: int) -> list[float]:
        """Round numbers from low to high, at most `most` steps apart."""
        step = next(s for s in (5, 10, 20, 50, 100, 1000) if (self.high - self.low) / s <= most)
        return [self.low + step * i for i in range(int((self.high - self.low) / step) + 1)]


def part_of(role: str) -> tuple[int, str]:
    """(block, part without expert numbers) of `blocks[3].mlp.down`; block 0 for a role outside the blocks."""
    found = ROLE.fullmatch(role)
    return (int(found[1]), _INDEX.sub("", found[2])) if found else (0, role)


def peak_of(picture: Picture) -> float:
    """The largest magnitude in a picture."""
    return max((max(row) for row in picture.magnitudes), default=0.0)
