"""A text on a terminal, as it is denoised."""

from __future__ import annotations

from rich.console import Console
from rich.live import Live
from rich.text import Text

from qspec.errors import visible


class LiveText:
    """Shows a text on standard error where that is a terminal, and takes it away at the end."""

    def __init__(self) -> None:
        console = Console(stderr=True, highlight=False)
        self._live = Live(console=console, transient=True, refresh_per_second=12) if console.is_terminal else None

    def __enter__(self) -> LiveText:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def update(self, text: str) -> None:
        if self._live is not None:
            self._live.update(Text(visible(text)))

    @property
    def shown(self) -> bool:
        return self._live is not None
