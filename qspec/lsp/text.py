"""A document as an editor has it. Its columns are counted in the units that both sides agreed on, UTF-16 mostly."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

from qspec.diagnostics import Diagnostic, Source
from qspec.language.parser import decode

UNITS: Mapping[str, Callable[[str], int]] = {  # encoding -> how many units a text takes
    "utf-8": lambda text: len(text.encode("utf-8", "surrogatepass")),
    "utf-16": lambda text: len(text.encode("utf-16-le", "surrogatepass")) // 2,
    "utf-32": len,
}
_LINE_END = re.compile(r"\r\n|\n|\r")


class Place(NamedTuple):
    """A place in an editor's terms: line and column from 0, the column in units of the encoding."""

    line: int
    column: int


@dataclass(frozen=True)
class Document:
    """A recipe's text, its line ends as they are. Offsets are those of `source`, in which every line end is `\\n`."""

    path: str
    raw: str
    encoding: str = "utf-16"

    @cached_property
    def source(self) -> Source:
        return Source(self.path, _LINE_END.sub("\n", self.raw))

    @cached_property
    def problems(self) -> list[Diagnostic]:
        """Why the text is no recipe, whatever it says: too large, or with characters that deceive."""
        return decode(self.raw.encode("utf-8", "surrogatepass"), self.path)[1]

    def place(self, offset: int) -> Place:
        """Of a character of `source`."""
        at = self.source.position(offset)
        return Place(at.line - 1, UNITS[self.encoding](self.source.line(at.line)[: at.column - 1]))

    def offset(self, place: Place) -> int:
        """Of a place; one behind a line's end is at its end, one behind the last line at the text's end."""
        start = self.source.line_start(place.line + 1)
        if start == len(self.source.text):
            return start
        return start + self._characters(self.source.line(place.line + 1), place.column)

    def _characters(self, line: str, column: int) -> int:
        """How many characters of a line lie before a column; a column inside a character counts it."""
        if self.encoding == "utf-32" or line.isascii():
            return min(column, len(line))
        units = UNITS[self.encoding]
        taken = 0
        for i, char in enumerate(line):
            if taken >= column:
                return i
            taken += units(char)
        return len(line)

    def changed(self, start: Place, end: Place, text: str) -> Document:
        """With the text between two places replaced."""
        first, last = self._raw_offset(start), self._raw_offset(end)
        return replace(self, raw=self.raw[:first] + text + self.raw[last:])

    def _raw_offset(self, place: Place) -> int:
        line = self.source.position(self.offset(place)).line - 1
        column = self.offset(place) - self.source.line_start(line + 1)
        return self._raw_starts[line] + column

    @cached_property
    def _raw_starts(self) -> list[int]:
        return [0, *(found.end() for found in _LINE_END.finditer(self.raw))]
