"""What a long phase tells the user: a live line on a terminal, plain lines elsewhere, nothing when quiet."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

T = TypeVar("T")


def time_left(seconds: float, done: int, total: int) -> str:
    """What is left of a part of which `done` items took these seconds: "3 min left"; "" before the first."""
    if not done:
        return ""
    left = seconds / done * (total - done)
    if left < 90:
        return f"{left:.0f} s left"
    return f"{left / 60:.0f} min left" if left < 90 * 60 else f"{left / 3600:.1f} h left"


class Progress(Protocol):
    """Where the compiler and the evaluation report to."""

    def note(self, text: str) -> None:
        """One line that stays."""
        ...

    def phase(self, title: str) -> Any:
        """Context manager around a long phase; its seconds are kept under its title."""
        ...

    def blocks(self, blocks: Sequence[T]) -> Iterator[T]:
        """Iterates with a counter and the time left."""
        ...

    def step(self, text: str) -> None:
        """What is being done right now."""
        ...

    def part(self, title: str, done: int, total: int) -> None:
        """How far a part of a phase is, in items."""
        ...


class Quiet:
    """Reports nothing; keeps the timings."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def note(self, text: str) -> None:
        """Nothing is shown."""

    def step(self, text: str) -> None:
        """Nothing is shown."""

    def part(self, title: str, done: int, total: int) -> None:
        """Nothing is shown."""

    @contextmanager
    def phase(self, title: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[title] = time.perf_counter() - start

    def blocks(self, blocks: Sequence[T]) -> Iterator[T]:
        yield from blocks
