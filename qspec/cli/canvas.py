"""The canvas of one text on a terminal, as it is denoised."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from rich.console import Console
from rich.live import Live
from rich.text import Text

from qspec.errors import visible
from qspec.models.sampler import SampleStep, Tokenizer, until

MASK = "·"  # a token that is not yet decided


class Canvas:
    """What is decided of a text of `length` tokens. ends: tokens behind which nothing is shown."""

    def __init__(self, tokenizer: Tokenizer, length: int, ends: Sequence[int]) -> None:
        self._tokenizer, self._ends = tokenizer, ends
        self._tokens: list[int | None] = [None] * length

    def update(self, step: SampleStep) -> None:
        """Takes over what a step committed of the first row."""
        for place in step.committed[0].nonzero().flatten().tolist():
            self._tokens[place] = int(step.tokens[0, place])

    def text(self) -> str:
        """The decided tokens as text, up to the first end; others as `MASK`."""
        shown: list[str] = []
        for decided, run in groupby(self._tokens, lambda token: token is not None):
            places = list(run)
            tokens = [token for token in places if token is not None]
            kept = until(tokens, *self._ends)
            shown.append(self._tokenizer.decode(kept, skip_special_tokens=True) if decided else MASK * len(places))
            if len(kept) < len(tokens):
                break
        return "".join(shown)


class LiveCanvas:
    """Shows a canvas on standard error where that is a terminal, and takes it away at the end."""

    def __init__(self, canvas: Canvas) -> None:
        self._canvas = canvas
        console = Console(stderr=True, highlight=False)
        self._live = Live(console=console, transient=True, refresh_per_second=12) if console.is_terminal else None

    def __enter__(self) -> LiveCanvas:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def update(self, step: SampleStep) -> None:
        """Takes over a step, and shows it."""
        if self._live is not None:
            self._canvas.update(step)
            self._live.update(Text(visible(self._canvas.text())))

    @property
    def shown(self) -> bool:
        return self._live is not None
