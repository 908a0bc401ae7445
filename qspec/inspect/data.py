"""What an inspection found, as one value; inspect.json holds it whole (its keys: docs/inspect.md)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from qspec.calibrate.outliers import Kind, Picture, SiteOutliers, Stage

Positions = Literal["all", "masked", "unmasked"]
KINDS: tuple[Kind, ...] = ("normal", "massive")


@dataclass(frozen=True)
class Subject:
    """What was inspected. stage: the inputs as they are, or, of an artifact, as they are quantized."""

    id: str
    family: str
    standin: bool
    stage: Stage
    blocks: int
    width: int
    ffn: int
    mask_token: int


@dataclass(frozen=True)
class Input:
    """Which tokens: `samples` windows of `length` tokens of a text, masked at every ratio with the same draws.

    sha256: of the unmasked tokens and of the draws.
    """

    text: str
    samples: int
    length: int
    ratios: tuple[float, ...]
    seed: int
    sha256: str


@dataclass(frozen=True)
class TokenPeak:
    """A token that the top channel's outlier spans. token: the text's own, also where the model sees a mask."""

    sample: int
    position: int
    token: str
    masked: bool
    magnitude: float


@dataclass(frozen=True)
class Row:
    """One input at one mask ratio, over all of its positions or over the masked or unmasked ones alone.

    There is no row for positions of which there are none. tokens: the largest of those that the top channel spans.
    """

    block: int
    input: str
    ratio: float
    positions: Positions
    found: SiteOutliers
    tokens: tuple[TokenPeak, ...]


@dataclass(frozen=True)
class Drawn:
    """The largest outlier of a kind, drawn: its row's input and ratio, and which tokens of which sample."""

    kind: Kind
    ratio: float
    sample: int
    first: int
    picture: Picture


@dataclass(frozen=True)
class Inspection:
    """rows: by block, input, ratio, positions. pictures: at most one of each kind. thresholds: of the definitions."""

    subject: Subject
    input: Input
    rows: tuple[Row, ...]
    pictures: tuple[Drawn, ...]
    thresholds: Mapping[str, float]
    computed: str
    environment: Mapping[str, str]
    format: Literal[1] = 1

    def as_json(self) -> dict[str, Any]:
        """Plain values, every number finite."""
        return asdict(self)

    @property
    def inputs(self) -> tuple[str, ...]:
        """The inputs of a block, in forward order: attention.input, ..."""
        return tuple(dict.fromkeys(row.input for row in self.rows))

    def at(self, input: str | None = None, ratio: float | None = None, positions: Positions = "all") -> list[Row]:
        """The rows of an input, at a ratio; None takes every one."""
        return [
            row
            for row in self.rows
            if row.positions == positions and input in (None, row.input) and ratio in (None, row.ratio)
        ]


def largest(rows: Iterable[Row]) -> Row | None:
    """By the crest factor, which is what rounding noise follows; the first of equals."""
    return max(rows, key=lambda row: row.found.crest, default=None)


def finite(found: SiteOutliers) -> bool:
    """Whether the magnitudes held no NaN or Inf."""
    return math.isfinite(found.peak) and math.isfinite(found.crest)
