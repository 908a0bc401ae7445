"""Role selectors: `blocks[0, 4..7, -1].{attention,mlp}.*`, `head`, `module("regex")`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Selector:
    """A parsed selector. `text` is its canonical spelling; `matches` is filled in by the language."""

    text: str
