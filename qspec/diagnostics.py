"""Spans, sources, diagnostics and their rendering as text, JSON and GitHub annotations. Torch-free.

A diagnostic is data: a stable code, one sentence, one next step and, where the fix is certain, the edits
that make it.
`qspec explain CODE` tells the longer story of a code (grammar/errors.md).
"""

from __future__ import annotations

import json
import unicodedata
from bisect import bisect_right
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar, Literal, NamedTuple

from qspec.errors import QspecError, visible

SHOWN_WIDTH = 160  # columns of a source line that a rendering shows; longer lines are cut around the span


class Span(NamedTuple):
    """Half-open range of characters [start, end) in the source at `path`."""

    start: int
    end: int
    path: str = ""

    def cover(self, other: Span) -> Span:
        """The smallest span over both (of one source)."""
        return Span(min(self.start, other.start), max(self.end, other.end), self.path)

    def moved(self, offset: int, path: str) -> Span:
        """The span of a text's part, where the text stands at `offset` of `path`."""
        return Span(self.start + offset, self.end + offset, path)


@dataclass(frozen=True)
class Position:
    """One-based line and column of a character."""

    line: int
    column: int


@dataclass(frozen=True)
class Source:
    """The text at `path`, with line ends already made `\\n`."""

    path: str
    text: str

    @cached_property
    def _starts(self) -> list[int]:
        return [0, *(i + 1 for i, c in enumerate(self.text) if c == "\n")]

    def position(self, offset: int) -> Position:
        """Line and column of the character at `offset`, which is clipped into the text."""
        offset = min(max(offset, 0), len(self.text))
        line = bisect_right(self._starts, offset)
        return Position(line, offset - self._starts[line - 1] + 1)

    def line(self, number: int) -> str:
        """The text of the one-based line, without its end."""
        start = self._starts[number - 1]
        end = self.text.find("\n", start)
        return self.text[start:] if end < 0 else self.text[start:end]

    def line_start(self, number: int) -> int:
        """Offset of the first character of the one-based line; the text's end for the line after the last."""
        return self._starts[number - 1] if number <= len(self._starts) else len(self.text)


@dataclass(frozen=True)
class Edit:
    """Replace the span's text by `replacement`; an empty span inserts."""

    span: Span
    replacement: str


@dataclass(frozen=True)
class Note:
    """A second place that belongs to a diagnostic, with what it has to do with it."""

    span: Span
    text: str


@dataclass(frozen=True)
class Diagnostic:
    """One finding: `message` is one sentence without its period, `hint` the one next step, `edits` the sure
    fix."""

    code: str
    message: str
    span: Span
    hint: str
    severity: Literal["error", "warning"] = "error"
    edits: tuple[Edit, ...] = ()
    notes: tuple[Note, ...] = ()


class RecipeError(QspecError):
    """A recipe has errors (exit 1). `diagnostics` holds errors and warnings, `sources` what they point
    into."""

    exit_code: ClassVar[int] = 1

    def __init__(self, diagnostics: Iterable[Diagnostic], sources: Mapping[str, Source]) -> None:
        self.diagnostics = tuple(diagnostics)
        self.sources = dict(sources)
        super().__init__("the recipe has errors")

    def __str__(self) -> str:
        return render_text(self.diagnostics, self.sources)


def errors(diagnostics: Iterable[Diagnostic]) -> tuple[Diagnostic, ...]:
    """Those that stop a compile."""
    return tuple(d for d in diagnostics if d.severity == "error")


def in_order(diagnostics: Iterable[Diagnostic], sources: Mapping[str, Source]) -> tuple[Diagnostic, ...]:
    """Sorted by file (in the order the files were read), place and code, without repetitions."""
    files = {path: i for i, path in enumerate(sources)}
    unique = dict.fromkeys(diagnostics)
    return tuple(sorted(unique, key=lambda d: (files.get(d.span.path, 0), d.span.start, d.span.end, d.code)))


def apply_edits(text: str, edits: Sequence[Edit]) -> str:
    """The text with the edits made, last first; of two that overlap the first one wins."""
    chosen: list[Edit] = []
    for edit in sorted(edits, key=lambda e: (e.span.start, e.span.end)):
        if not chosen or edit.span.start >= chosen[-1].span.end:
            chosen.append(edit)
    for edit in reversed(chosen):
        text = text[: edit.span.start] + edit.replacement + text[edit.span.end :]
    return text


def quote(text: str, limit: int = 60) -> str:
    """`text` in backquotes, safe to print: control characters escaped, long text cut."""
    shown = "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in text[: limit + 1])
    return f"`{shown[:limit] + '…' if len(shown) > limit else shown}`"


def closest(word: str, names: Collection[str], *, digits: bool = True) -> str | None:
    """The name that `word` was probably meant to be: the nearest within a third of its length in single
    edits.

    digits False: where some name differs in its digits only, there is no guess (`int9` is not a misspelt
    `int8`).
    """
    if not digits and any(_without_digits(word) == _without_digits(name) for name in names):
        return None
    best: tuple[int, str] | None = None
    for name in sorted(names):
        allowed = max(1, (max(len(word), len(name)) + 1) // 3)
        distance = _distance(word.lower()[:64], name.lower()[:64])
        if distance <= allowed and distance < len(name) and (best is None or distance < best[0]):
            best = (distance, name)
    return best[1] if best else None


def _without_digits(text: str) -> str:
    return "".join(c for c in text.lower() if not c.isdigit())


def _distance(a: str, b: str) -> int:
    """Edit distance with swaps of neighbours counted as one (optimal string alignment)."""
    before: list[int] = []
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        older, before, row = before, row, [i]
        for j, y in enumerate(b, 1):
            cost = min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (x != y))
            if i > 1 and j > 1 and x == b[j - 2] and a[i - 2] == y:
                cost = min(cost, older[j - 2] + 1)
            row.append(cost)
    return row[-1]


def listed(names: Sequence[str], last: str = "or") -> str:
    """`a`, `b` or `c`."""
    quoted = [f"`{name}`" for name in names]
    return quoted[0] if len(quoted) == 1 else f"{', '.join(quoted[:-1])} {last} {quoted[-1]}"


# --- rendering ---


def render_text(diagnostics: Iterable[Diagnostic], sources: Mapping[str, Source], *, color: bool = False) -> str:
    """Every diagnostic as rustc shows them, with a blank line between two; no trailing newline."""
    paint = _PAINT if color else _PLAIN
    return "\n\n".join(_render_one(d, sources, paint) for d in diagnostics)


def summary(diagnostics: Sequence[Diagnostic]) -> str:
    """`2 errors, 1 warning`."""
    bad = len(errors(diagnostics))
    mild = len(diagnostics) - bad
    parts = [f"{n} {word}{'' if n == 1 else 's'}" for n, word in ((bad, "error"), (mild, "warning")) if n]
    return ", ".join(parts) if parts else "no errors"


_PLAIN: Mapping[str, str] = {}
_PAINT: Mapping[str, str] = {
    "error": "\x1b[1;31m",
    "warning": "\x1b[1;33m",
    "bold": "\x1b[1m",
    "blue": "\x1b[1;34m",
}


def _painted(text: str, style: str, paint: Mapping[str, str]) -> str:
    return f"{paint[style]}{text}\x1b[0m" if style in paint else text


def _render_one(d: Diagnostic, sources: Mapping[str, Source], paint: Mapping[str, str]) -> str:
    source = sources.get(d.span.path) or Source(d.span.path, "")
    places = [source.position(d.span.start).line, *(_line_of(n.span, sources) for n in d.notes)]
    gutter = max(len(str(number)) for number in places)
    edge = _painted(" " * gutter + " |", "blue", paint)
    message = _painted(visible(d.message), "bold", paint)
    head = f"{_painted(f'{d.severity}[{d.code}]', d.severity, paint)}: {message}"
    lines = [head, *_excerpt(d.span, source, gutter, _Mark("-->", "^", d.severity), paint)]
    for note in d.notes:
        other = sources.get(note.span.path) or Source(note.span.path, "")
        lines += _excerpt(note.span, other, gutter, _Mark(":::", "-", "blue", note.text), paint)
    lines.append(edge.rstrip())
    pad = " " * gutter
    lines.append(f"{pad} {_painted('=', 'blue', paint)} next: {visible(d.hint)}")
    fixed = _fixed_lines(d, sources)
    if fixed:
        lines.append(f"{pad} {_painted('=', 'blue', paint)} fix:")
        lines += [f"{edge} {line}".rstrip() for line in fixed]
    return "\n".join(lines)


def _line_of(span: Span, sources: Mapping[str, Source]) -> int:
    source = sources.get(span.path)
    return source.position(span.start).line if source else 1


class _Mark(NamedTuple):
    """How an excerpt points: the arrow before its place, what underlines the span, in which style, and its label."""

    arrow: str
    underline: str
    style: str
    label: str = ""


def _excerpt(span: Span, source: Source, gutter: int, mark: _Mark, paint: Mapping[str, str]) -> list[str]:
    """The place, the source line and the underlined span; a span over several lines is marked to its line's
    end."""
    at = source.position(span.start)
    line = source.line(at.line)
    start = at.column - 1
    end = max(start + 1, min(start + (span.end - span.start), len(line)))
    shown, left, width = _window(line, start, end)
    label = f" {visible(mark.label)}" if mark.label else ""
    under = " " * left + _painted(mark.underline * width + label, mark.style, paint)
    bar = _painted("|", "blue", paint)
    return [
        f"{' ' * gutter}{_painted(mark.arrow, 'blue', paint)} {visible(source.path)}:{at.line}:{at.column}",
        f"{' ' * gutter} {bar}",
        f"{_painted(str(at.line).rjust(gutter), 'blue', paint)} {bar} {shown}".rstrip(),
        f"{' ' * gutter} {bar} {under}",
    ]


def _window(line: str, start: int, end: int) -> tuple[str, int, int]:
    """The part of the line to show, and the columns before and under the marked characters."""
    cut = 0
    if len(line) > SHOWN_WIDTH:
        cut = max(0, min(start - SHOWN_WIDTH // 4, len(line) - SHOWN_WIDTH))
    part = line[cut : cut + SHOWN_WIDTH]
    lead = "…" if cut else ""
    tail = "…" if cut + SHOWN_WIDTH < len(line) else ""
    left = len(lead) + _columns(line[cut:start])
    width = max(1, _columns(part[start - cut : end - cut]))
    return lead + "".join(_visible(c) for c in part) + tail, left, width


def _visible(char: str) -> str:
    if char == "\t":
        return "    "
    return char if char.isprintable() else "�"


def _columns(text: str) -> int:
    """Terminal columns that the text takes: wide characters two, combining ones none."""
    return sum(
        4 if c == "\t" else 0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1
        for c in text
    )


def _fixed_lines(d: Diagnostic, sources: Mapping[str, Source]) -> list[str]:
    """The lines as the edits leave them, from the first that changes to the last."""
    source = sources.get(d.span.path)
    if not d.edits or source is None:
        return []
    first = source.line_start(source.position(min(edit.span.start for edit in d.edits)).line)
    last = source.position(max(edit.span.end for edit in d.edits)).line
    touched = source.text[first : source.line_start(last + 1)]
    moved = [replace(e, span=Span(e.span.start - first, e.span.end - first, e.span.path)) for e in d.edits]
    before, after = touched.split("\n"), apply_edits(touched, moved).split("\n")
    while before and after and before[0] == after[0]:
        del before[0], after[0]
    while before and after and before[-1] == after[-1]:
        del before[-1], after[-1]
    return [_window(line, 0, 0)[0] for line in after if line.strip()]


def to_json(diagnostics: Iterable[Diagnostic], sources: Mapping[str, Source]) -> str:
    """A stable JSON list: code, severity, message, hint, path, start and end with line, column, offset;
    fix, notes."""
    return json.dumps([_as_data(d, sources) for d in diagnostics], indent=2)


def _place(span: Span, sources: Mapping[str, Source]) -> dict[str, Any]:
    source = sources.get(span.path) or Source(span.path, "")
    start, end = source.position(span.start), source.position(span.end)
    return {
        "path": span.path,
        "start": {"line": start.line, "column": start.column, "offset": span.start},
        "end": {"line": end.line, "column": end.column, "offset": span.end},
    }


def _as_data(d: Diagnostic, sources: Mapping[str, Source]) -> dict[str, Any]:
    return {
        "code": d.code,
        "severity": d.severity,
        "message": d.message,
        "hint": d.hint,
        **_place(d.span, sources),
        "edits": [{**_place(e.span, sources), "replacement": e.replacement} for e in d.edits],
        "notes": [{**_place(n.span, sources), "text": n.text} for n in d.notes],
    }


def to_github(diagnostics: Iterable[Diagnostic], sources: Mapping[str, Source]) -> str:
    """Workflow commands that GitHub shows beside the lines of a pull request."""
    lines = []
    for d in diagnostics:
        at = _place(d.span, sources)
        place = (
            f"file={_property(d.span.path)},line={at['start']['line']},endLine={at['end']['line']},"
            f"col={at['start']['column']},endColumn={at['end']['column']},title={d.code}"
        )
        lines.append(f"::{d.severity} {place}::{_payload(f'{d.message}. Next: {d.hint}')}")
    return "\n".join(lines)


def _payload(text: str) -> str:
    return visible(text).replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _payload(text).replace(":", "%3A").replace(",", "%2C")
