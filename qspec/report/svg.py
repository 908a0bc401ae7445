"""A small SVG writer: every value is escaped; CSS classes name the colours, so that light and dark share a drawing."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from markupsafe import Markup, escape

from qspec.errors import visible

_NOT_XML = re.compile("[\ufffe\uffff]")  # and what `visible` escapes


@dataclass
class Svg:
    """A drawing of width x height units, about a pixel each. title: what it shows, for who cannot see it."""

    width: float
    height: float
    title: str
    parts: list[Markup] = field(default_factory=list)

    def rect(
        self, x: float, y: float, width: float, height: float, css: str, tip: str = "", opacity: float = 1.0
    ) -> None:
        shade = "" if opacity == 1 else Markup(' fill-opacity="{}"').format(number(opacity))
        self._add(
            '<rect class="{}" x="{}" y="{}" width="{}" height="{}" rx="1.5"{}>{}</rect>',
            css, number(x), number(y), number(width), number(height), shade, _tip(tip),
        )  # fmt: skip

    def line(self, x1: float, y1: float, x2: float, y2: float, css: str) -> None:
        self._add('<line class="{}" x1="{}" y1="{}" x2="{}" y2="{}"/>', css, *map(number, (x1, y1, x2, y2)))

    def circle(self, x: float, y: float, radius: float, css: str, tip: str = "") -> None:
        values = (number(x), number(y), number(radius))
        self._add('<circle class="{}" cx="{}" cy="{}" r="{}">{}</circle>', css, *values, _tip(tip))

    def text(self, x: float, y: float, text: str, css: str = "t", anchor: str = "start") -> None:
        if not text:
            return
        self._add(
            '<text class="{}" x="{}" y="{}" text-anchor="{}">{}</text>',
            css,
            number(x),
            number(y),
            anchor,
            clean(text),
        )

    def polyline(self, points: list[tuple[float, float]], css: str) -> None:
        joined = " ".join(f"{number(x)},{number(y)}" for x, y in points)
        self._add('<polyline class="{}" points="{}"/>', css, joined)

    def raw(self, part: Markup) -> None:
        self.parts.append(part)

    def inline(self) -> Markup:
        """For a page whose style sheet holds the classes."""
        return self._whole(Markup(""))

    def standalone(self, style: str) -> str:
        """A file of its own, with its style sheet."""
        return str(self._whole(Markup("<style>{}</style>").format(Markup(style)))) + "\n"

    def _whole(self, style: Markup) -> Markup:
        head = Markup(
            '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {} {}" role="img" aria-label="{}">{}'
        ).format(number(self.width), number(self.height), clean(self.title), style)
        return head + Markup("").join(self.parts) + Markup("</svg>")

    def _add(self, template: str, *values: object) -> None:
        self.parts.append(Markup(template).format(*values))


def number(value: float) -> str:
    """At most two decimals, none where they are zero."""
    return f"{value:.2f}".rstrip("0").rstrip(".")


def clean(text: str) -> str:
    """Without characters that XML cannot hold, and with those that nobody sees or that turn a line around escaped."""
    return _NOT_XML.sub("\ufffd", visible(text.replace("\r\n", "\n")))


def _tip(text: str) -> Markup:
    return Markup("<title>{}</title>").format(escape(clean(text))) if text else Markup("")
