"""What can go wrong, as values: what happened, where, and the next step. One class for each exit code."""

from __future__ import annotations

import re
from typing import ClassVar

# What a terminal obeys or a reader cannot see: control characters but for line ends and tabs, halves of surrogate
# pairs, zero-width and bidirectional marks, line and paragraph separators, tags.
CONTROL = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\ud800-\udfff\U000e0000-\U000e007f]"
)


def visible(text: str) -> str:
    """The text as it may be shown: names and texts from files must not command the terminal, or look like others."""
    return CONTROL.sub(lambda found: ascii(found[0])[1:-1], text)


class QspecError(Exception):
    """A failure that the user can act on; the command line prints it without a traceback.

    what:  one sentence, no trailing period needed.
    where: the file, tensor, line or module concerned.
    hint:  the next step.
    """

    exit_code: ClassVar[int] = 3

    def __init__(self, what: str, *, where: str | None = None, hint: str | None = None) -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.hint = hint

    def __str__(self) -> str:
        lines = [self.what]
        if self.where:
            lines.append(f"  where: {self.where}")
        if self.hint:
            lines.append(f"  next:  {self.hint}")
        return visible("\n".join(lines))


class InputError(QspecError):
    """An input is missing, corrupt or of the wrong kind (exit 3)."""


class MachineError(QspecError):
    """The machine failed: out of memory, disk full, no such device (exit 3)."""


class NumericsError(QspecError):
    """A number that cannot be right: NaN, Inf, a matrix that stays singular, a function that changed (exit 3)."""


GATE_FAILED = 4  # exit code of a command that measured, where a recipe's gate failed


class UsageError(QspecError):
    """The command line was not understood (exit 2)."""

    exit_code: ClassVar[int] = 2
