"""grammar/qspec.lark as lark reads it: text -> tree, or where it stops and what could have come there.

Nothing is cached on disk: making the tables takes less than a tenth of a second, and lark's cache is a pickle, which
runs what it holds when it is read.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

from lark import Lark, UnexpectedCharacters, UnexpectedInput

from qspec import resources

BLOCKS = ("recipe", "calibrate", "scheme", "search", "evaluate", "emit")
LINES = ("version", "extends", "param", "layers", "apply")
STARTS = (
    *LINES,
    *(f"{kind}_head" for kind in BLOCKS),
    *(f"{kind}_body" for kind in (*BLOCKS, "task")),
    "selector",
)
END = "$END"


@dataclass
class Mismatch(Exception):  # noqa: N818 - an answer, which the parser turns into a diagnostic
    """The text stops making sense at [start, end): `found` ("" at its end), where one of the terminals `expected`
    could have come."""

    found: str
    start: int
    end: int
    expected: frozenset[str]


@cache
def lark_parser(*starts: str) -> Lark:
    """The parser for some of the grammar's rules."""
    text = (resources.grammar() / "qspec.lark").read_text(encoding="utf-8")
    return Lark(text, parser="lalr", start=list(starts), propagate_positions=True, maybe_placeholders=True)


@cache
def literals() -> dict[str, str]:
    """Terminal -> the keyword or sign that it stands for."""
    return {t.name: t.pattern.value for t in lark_parser(*STARTS).terminals if type(t.pattern).__name__ == "PatternStr"}


@lru_cache(maxsize=4096)
def tree(start: str, text: str) -> Any:
    """Lark's tree of a text for a start rule. Raises Mismatch."""
    try:
        return lark_parser(*STARTS).parse(text, start=start)
    except UnexpectedInput as error:
        raise _mismatch(error, text) from None


def _mismatch(error: Any, text: str) -> Mismatch:
    expected = frozenset(error.interactive_parser.accepts())
    if isinstance(error, UnexpectedCharacters):
        at = error.pos_in_stream
        return Mismatch(text[at], at, at + 1, expected)
    if error.token.type == END:
        return Mismatch("", len(text), len(text), expected)
    return Mismatch(str(error.token), error.token.start_pos, error.token.end_pos, expected)
