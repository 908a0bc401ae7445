"""What a long phase tells the user: a live line on a terminal, plain lines elsewhere, nothing when quiet."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

T = TypeVar("T")


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


class Quiet:
    """Reports nothing; keeps the timings."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def note(self, text: str) -> None:
        """Nothing is shown."""

    def step(self, text: str) -> None:
        """Nothing is shown."""

    @contextmanager
    def phase(self, title: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[title] = time.perf_counter() - start

    def blocks(self, blocks: Sequence[T]) -> Iterator[T]:
        yield from blocks
