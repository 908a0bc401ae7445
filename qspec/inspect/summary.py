"""The few lines at the top of an inspection, and its table: the worst block of every input at every mask ratio."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from qspec.calibrate.outliers import Kind, SiteOutliers
from qspec.inspect.data import KINDS, Inspection, Row, largest
from qspec.models.registry import FAMILIES

HEAD = (
    "input of", "mask", "block", "kind", "peak", "ratio", "crest", "channels", "tokens", "masked", "unmasked",
)  # fmt: skip
LEFT = (0, 3)  # columns of words
LEGEND = """\
Each row is the block with the largest crest factor (peak over rms). ratio: the peak over the median channel's;
channels: those from a ratio of 5 on; tokens: share at which the top channel exceeds five times that median,
of all positions, of the masked and of the unmasked ones."""
EXPERTS = """
Inputs of experts' down are not here: each sees some tokens. Without a shared expert, gate, up is what a router reads"""
INPUT_NAMES = {
    "attention.input": "q, k, v",
    "attention.mixed": "o",
    "mlp.input": "gate, up",
    "mlp.gated": "down",
    "mlp.shared.gated": "shared down",
}


@dataclass(frozen=True)
class Line:
    """One input at one ratio. worst: of all blocks, over all positions; masked, unmasked: the same block's."""

    worst: Row
    masked: Row | None
    unmasked: Row | None

    @property
    def cells(self) -> tuple[str, ...]:
        found = self.worst.found
        spans = (_span(row.found if row else None) for row in (self.worst, self.masked, self.unmasked))
        return (
            INPUT_NAMES.get(self.worst.input, self.worst.input),
            percent(self.worst.ratio),
            str(self.worst.block),
            found.kind,
            short(found.peak),
            short(found.ratio),
            short(found.crest),
            str(found.outlier_channels),
            *spans,
        )


def lines(data: Inspection) -> list[Line]:
    """One for each input of a block and each ratio."""
    worst = [largest(data.at(name, ratio)) for name in data.inputs for ratio in data.input.ratios]
    return beside(data, [row for row in worst if row is not None])


def beside(data: Inspection, rows: Iterable[Row]) -> list[Line]:
    """Rows over all positions, each beside those of the same block, input and ratio at masked and unmasked ones."""
    table = {(row.block, row.input, row.ratio, row.positions): row for row in data.rows}
    return [
        Line(row, *(table.get((row.block, row.input, row.ratio, which)) for which in ("masked", "unmasked")))
        for row in rows
    ]


def headline(data: Inspection) -> str:
    """At which inputs of how many blocks there are outliers of each kind, at any mask ratio; the graver kind counts."""
    kinds: dict[tuple[str, int], Kind] = {}
    for row in data.at():
        key = (row.input, row.block)
        kinds[key] = max(kinds.get(key, "none"), row.found.kind, key=("none", *KINDS).index)
    massive = Counter(name for (name, _), kind in kinds.items() if kind == "massive")
    normal = sum(kind == "normal" for kind in kinds.values())
    if not massive:
        return (
            f"Normal outliers at {normal} of {len(kinds)} inputs." if normal else f"No outliers at {len(kinds)} inputs."
        )
    places = [f"{INPUT_NAMES.get(name, name)} in {count}" for name, count in massive.most_common()]
    places[0] += f" of {data.subject.blocks} blocks"
    return f"Massive outliers at the input of {'; '.join(places)}. Normal ones at {normal} of {len(kinds)} inputs."


def details(data: Inspection) -> list[str]:
    """The largest of each kind, in a few words."""
    out = []
    for kind in KINDS:
        row = largest(row for row in data.at() if row.found.kind == kind)
        if row is not None:
            found = row.found
            out.append(
                f"largest {kind}: {found.site}, channel {found.top[0].channel}, {short(found.peak)} "
                f"({short(found.times_typical)} times the typical), {percent(found.tokens_spanned)} of tokens, "
                f"mask ratio {row.ratio:g}"
            )
    return out


def legend(data: Inspection) -> str:
    """What the table shows, and what not."""
    return LEGEND + (EXPERTS if FAMILIES[data.subject.family].experts else "")


def table(data: Inspection) -> list[tuple[str, ...]]:
    """Head and rows."""
    return [HEAD, *(one.cells for one in lines(data))]


def short(value: float) -> str:
    """Three digits, never an exponent."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def percent(share: float) -> str:
    """Whole percent; what is not quite none or all is not shown as such."""
    if 0 < share < 0.01:
        return "<1 %"
    if 0.99 < share < 1:
        return ">99 %"
    return f"{100 * share:.0f} %"


def _span(found: SiteOutliers | None) -> str:
    return "–" if found is None else percent(found.tokens_spanned)


def aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """A table in plain text."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    cells = (
        [c.ljust(w) if i in LEFT else c.rjust(w) for i, (c, w) in enumerate(zip(r, widths, strict=True))] for r in rows
    )
    return ["  ".join(row).rstrip() for row in cells]
