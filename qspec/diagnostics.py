"""Spans, sources, diagnostics and their rendering."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Span:
    """Half-open range of characters [start, end) in the source at `path`."""

    start: int
    end: int
    path: str = ""
