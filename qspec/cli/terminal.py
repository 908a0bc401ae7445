"""Progress on a terminal: a live bar with the block, the pass and the time left; plain lines where there is no TTY."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from qspec.errors import visible
from qspec.progress import Quiet, time_left

T = TypeVar("T")


LINE_EVERY = 30.0  # seconds between lines on the same part where there is no terminal


@dataclass(frozen=True)
class _Part:
    """A part of a phase: when `first` items of it were done, and when a line on it was written."""

    title: str
    start: float
    first: int
    told: float


class Terminal(Quiet):
    """Shows phases and blocks on stderr, so that stdout stays for results."""

    def __init__(self) -> None:
        super().__init__()
        self.console = Console(stderr=True, highlight=False, soft_wrap=True)
        self._bars: Bars | None = None
        self._step = ""
        self._part = _Part("", 0.0, 0, 0.0)

    def note(self, text: str) -> None:
        self.console.print(visible(text), markup=False)

    def step(self, text: str) -> None:
        self._step = visible(text)

    def part(self, title: str, done: int, total: int) -> None:
        """A live line on a terminal; elsewhere a line every half minute, and one at the end."""
        now = time.monotonic()
        if title != self._part.title:
            self._part = _Part(title, now, done, now)
        if self.console.is_terminal:
            end = "\n" if done >= total else "\r"
            self.console.print(f"  {self._line(done, total, now):<100.100}", markup=False, end=end, soft_wrap=False)
        elif done >= total or now - self._part.told >= LINE_EVERY:
            self._part = replace(self._part, told=now)
            self.note(f"  {self._line(done, total, now)}")

    def _line(self, done: int, total: int, now: float) -> str:
        first = self._part.first
        left = time_left(now - self._part.start, done - first, total - first) if first < done < total else ""
        return ", ".join(filter(None, [f"{visible(self._part.title)}: {done} of {total}", left]))

    @contextmanager
    def phase(self, title: str) -> Iterator[None]:
        if not self.console.is_terminal:
            self.note(f"{title} ...")
        with super().phase(title):
            yield
        self.note(f"{title}: {self.seconds[title]:.1f} s")

    def blocks(self, blocks: Sequence[T]) -> Iterator[T]:
        if not self.console.is_terminal:
            yield from self._plain(blocks)
            return
        columns = (
            SpinnerColumn(),
            TextColumn("block"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[step]}  {task.fields[memory]}"),
        )
        with Bars(*columns, console=self.console, transient=True) as bars:
            task = bars.add_task("blocks", total=len(blocks), step="", memory="")
            for block in blocks:
                yield block
                bars.update(task, advance=1, step=self._step, memory=_memory())

    def _plain(self, blocks: Sequence[T]) -> Iterator[T]:
        for index, block in enumerate(blocks):
            yield block
            self.note(f"  block {index + 1}/{len(blocks)} done, {_memory()}")


def _memory() -> str:
    """Peak resident memory of this process so far."""
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return f"peak {peak / 2**30:.1f} GiB"
