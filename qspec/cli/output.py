"""What the commands show: every text passes here, so that none from a file commands the terminal, and none is lost."""

from __future__ import annotations

import argparse
import difflib
import os
import re
import sys
from pathlib import Path
from typing import Any, TextIO

from qspec.errors import InputError, MachineError, visible

HINT = "send it to a file, or to /dev/null"


def say(text: object = "", end: str = "\n") -> None:
    """One text on standard output, control characters escaped. Raises MachineError where it cannot be written."""
    write(f"{visible(str(text))}{end}")


def unified_diff(before: str, after: str, old: str, new: str) -> str:
    """Two texts, of these names, as `diff -u` and git show them."""
    one, other = (re.findall(r"[^\n]*\n|[^\n]+$", text) for text in (before, after))
    lines = difflib.unified_diff(one, other, old, new)
    return "".join(line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n" for line in lines)


def near(path: Path) -> Path:
    """A path as it is named from the working folder, if it is below that."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path


def write(text: str) -> None:
    """A text whose control characters are our own colours."""
    try:
        sys.stdout.write(text)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise _unwritable(error) from error


def tell(text: object, end: str = "\n") -> None:
    """One text on standard error, control characters escaped."""
    warn(f"{visible(str(text))}{end}")


def warn(text: str) -> None:
    """The same, of a text whose control characters are our own colours; nobody can be told that this fails."""
    try:
        sys.stderr.write(text)
        sys.stderr.flush()
    except OSError:
        discard(sys.stderr)


def open_streams() -> None:
    """Makes the standard streams fit to be written to. Raises MachineError where standard output is closed."""
    if sys.stderr is None:
        sys.stderr = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 - as long as the process
    if sys.stdout is None:
        raise MachineError("standard output is closed", hint=HINT)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # a terminal that knows ASCII only gets all of it too


def flush() -> None:
    """Raises MachineError where something that was said cannot be written, BrokenPipeError where nobody reads it."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise _unwritable(error) from error


def discard(stream: TextIO) -> None:
    """Gives up what was not written yet: the interpreter would try once more at its end, and complain."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def read_standard(limit: int) -> bytes:
    """The start of standard input, at most `limit` bytes. Raises InputError where it is closed."""
    if sys.stdin is None:
        raise InputError("standard input is closed", where="-", hint="give a file")
    return sys.stdin.buffer.read(limit)


def _unwritable(error: OSError) -> MachineError:
    discard(sys.stdout)
    return MachineError(f"standard output cannot be written: {error.strerror or error}", hint=HINT)


class Parser(argparse.ArgumentParser):
    """Arguments, and messages about them."""

    def _print_message(self, message: str, file: Any = None) -> None:
        (say if file is sys.stdout else tell)(message, end="")
