"""Recipes as arguments of commands: files, folders and patterns; read, and written as a whole."""

from __future__ import annotations

import glob
import os
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path

from qspec.checked import unreadable
from qspec.cli.output import read_standard
from qspec.diagnostics import Diagnostic, Source
from qspec.errors import InputError
from qspec.language.parser import MAX_BYTES, decode, read, read_bytes

SUFFIX = ".qs"


def recipe_files(arguments: Iterable[str]) -> list[str]:
    """The recipes that are named: a folder stands for those below it, a pattern such as `**/*_w4*.qs` for those that it
    fits; each once. Raises InputError for a folder without recipes and a pattern that fits nothing.
    """
    found: dict[str, None] = {}
    for argument in arguments:
        if argument not in ("-", "") and os.path.isdir(argument):  # noqa: PTH112 - any name is no error
            found |= dict.fromkeys(_below(Path(argument)))
        elif glob.has_magic(argument) and not os.path.lexists(argument):
            names = sorted(name for name in glob.glob(argument, recursive=True) if Path(name).is_file())  # noqa: PTH207 - may be absolute
            if not names:
                raise InputError("no file fits this pattern", where=argument, hint="quote it, or name files")
            found |= dict.fromkeys(names)
        else:
            found[argument] = None
    return list(found)


def _below(folder: Path) -> list[str]:
    """The recipes in a folder and in those below it, but for hidden ones."""
    names = []
    for place, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        names += [str(Path(place) / name) for name in files if name.endswith(SUFFIX) and not name.startswith(".")]
    if not names:
        raise InputError(f"there is no {SUFFIX} file in this folder", where=str(folder), hint="name a recipe")
    return sorted(names)


def read_source(path: str) -> tuple[Source, list[Diagnostic]]:
    """A recipe's text, of standard input for "-", and why it is none. Raises InputError where it cannot be read."""
    try:
        return decode(read_standard(MAX_BYTES + 1), "<stdin>") if path == "-" else read(path)
    except OSError as error:
        raise unreadable(error, path) from None


def rewrite_recipe(path: Path, text: str) -> None:
    """As `write_recipe`, with the line ends that the file has."""
    ends = "\r\n" if b"\r\n" in read_bytes(path) else "\n"
    write_recipe(path, text.replace("\n", ends))


def write_recipe(path: Path, text: str) -> None:
    """Replaces the file as a whole, keeping its mode; a link's target is replaced, not the link."""
    target = path.resolve()
    temporary = None
    try:
        handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}-")
        with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
        shutil.copymode(target, temporary)
        Path(temporary).replace(target)
    except OSError as error:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
        raise InputError(f"the recipe cannot be written: {error.strerror or error}", where=str(path)) from None
