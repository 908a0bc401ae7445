"""Cuts a recipe into statements, so that each is parsed by itself and one bad line never hides another.

This knows only lines, brackets, strings and comments. A statement ends with its line; a line goes on inside
brackets and after a comma. Unclosed strings, brackets and braces are reported here, and what follows them
is still cut sensibly.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from qspec.diagnostics import Diagnostic, Source, Span
from qspec.language.syntax import Comments

LINE_KINDS = {
    "qspec": "version",
    "extends": "extends",
    "param": "param",
    "layers": "layers",
    "apply": "apply",
}
BLOCK_KINDS = ("recipe", "calibrate", "scheme", "search", "evaluate", "emit")
TOP = frozenset([*LINE_KINDS, *BLOCK_KINDS])
INNER = frozenset(["task", "nelbo", "require"])
DEEPEST = 2  # task { } inside evaluate { }

_TOKENS = re.compile(
    r"""(?P<newline>\n) | (?P<space>[ \t]+) | (?P<comment>\#[^\n]*) | (?P<string>"[^"\n]*")
      | (?P<open_string>"[^"\n]*)
      | (?P<open>[(\[{]) | (?P<close>[)\]}]) | (?P<code>[^\s"\#()\[\]{}]+) | (?P<other>\s)""",
    re.VERBOSE,
)
_WORD = re.compile(r"[A-Za-z_]\w*")
_LINE_WORD = re.compile(r"[ \t]*([A-Za-z_]\w*)(?![ \t]*=)")
_PAIR = {"(": ")", "[": "]", "{": "}"}
_PARTNER = {close: open_ for open_, close in _PAIR.items()}


@dataclass
class Piece:
    """The code of one statement (or of several settings on one line): characters [start, end) of the
    source."""

    start: int
    end: int
    before: list[tuple[str, bool]]
    blank: bool
    inside: list[tuple[int, str]] = field(default_factory=list)
    after: str | None = None
    broken: bool = False  # already reported; not worth parsing

    def comments(self) -> Comments:
        """As the syntax tree keeps them; comments inside the statement move above it."""
        return Comments(
            before=tuple(t for t, _ in self.before) + tuple(t for _, t in self.inside),
            after=self.after,
            blank=self.blank,
            gaps=tuple(g for _, g in self.before) + (False,) * len(self.inside),
        )


@dataclass
class Braces:
    """`head { items }`."""

    head: Piece
    open: int
    close: int = -1
    items: list[Piece | Braces] = field(default_factory=list)
    opening: str | None = None
    closing: list[tuple[str, bool]] = field(default_factory=list)
    word: str = ""


@dataclass
class Pieces:
    """The whole source, cut; `comments` are all comments in order."""

    items: list[Piece | Braces]
    closing: list[tuple[str, bool]]
    comments: list[str]
    problems: list[Diagnostic]


def as_comments(lines: list[tuple[str, bool]]) -> Comments:
    """Comment lines that stand before a closing brace or the end of the file."""
    return Comments(before=tuple(t for t, _ in lines), gaps=tuple(g for _, g in lines))


def cut(source: Source) -> Pieces:
    """Cuts the source; never fails, whatever the text."""
    cutter = _Cutter(source)
    return cutter.run()


class _Cutter:
    def __init__(self, source: Source) -> None:
        self.source = source
        self.text = source.text
        self.root: list[Piece | Braces] = []
        self.stack: list[Braces] = []  # blocks that are open
        self.brackets: list[tuple[str, int]] = []  # brackets open in the current piece
        self.piece: Piece | None = None
        self.pending: list[tuple[str, bool]] = []  # comment lines that wait for a statement
        self.blank = False  # a blank line went by
        self.empty = True  # nothing on this line yet
        self.latest: Piece | Braces | None = None  # what ended or opened last on this line
        self.comments: list[str] = []
        self.problems: list[Diagnostic] = []

    def run(self) -> Pieces:
        on = {kind: getattr(self, f"_on_{kind}") for kind in _TOKENS.groupindex if kind not in ("space", "other")}
        for match in _TOKENS.finditer(self.text):
            if match.lastgroup in on:
                on[match.lastgroup](match)
        self._finish()
        closing = self.pending
        for block in reversed(self.stack):
            block.close = len(self.text)
        for block in reversed(self.stack[: DEEPEST + 1]):
            self._unclosed(block)
        return Pieces(self.root, closing, self.comments, self.problems)

    # --- tokens ---

    def _on_newline(self, match: re.Match[str]) -> None:
        if self.piece is not None and not self._goes_on(match.end()):
            self._finish()
        if self.empty and self.piece is None:
            self.blank = True
        self.empty, self.latest = True, None

    def _goes_on(self, at: int) -> bool:
        """Whether the statement goes on in the line that starts at `at`."""
        assert self.piece is not None
        word = _LINE_WORD.match(self.text, at)
        if word and (word[1] in TOP or (self.stack and word[1] in INNER)):
            return False  # nobody starts a continued line with these: the bracket was forgotten
        if self.brackets:
            return True
        if self.text[self.piece.end - 1] == ",":
            return True
        first = _WORD.match(self.text, self.piece.start)
        kinds = (*BLOCK_KINDS, "task")
        return bool(first and first[0] in kinds and re.compile(r"\s*\{").match(self.text, at))

    def _on_comment(self, match: re.Match[str]) -> None:
        text = match[0].rstrip()
        self.comments.append(text)
        if self.piece is not None:
            self.piece.inside.append((match.start(), text))
        elif isinstance(self.latest, Braces) and self.latest.close < 0 and self.latest.opening is None:
            self.latest.opening = text
        elif isinstance(self.latest, Braces) and self.latest.close >= 0:
            self.latest.head.after = text
        else:
            self.pending.append((text, self.blank))
        self.blank = self.empty = False

    def _on_code(self, match: re.Match[str]) -> None:
        self._extend(match)

    def _on_string(self, match: re.Match[str]) -> None:
        self._extend(match)

    def _on_open_string(self, match: re.Match[str]) -> None:
        piece = self._extend(match)
        piece.broken = True
        self.problems.append(
            Diagnostic(
                "QS003",
                "this string is not closed on its line",
                Span(match.start(), match.end(), self.source.path),
                'end the string with `"`; a string cannot go over several lines or hold a `"`',
            )
        )

    def _on_open(self, match: re.Match[str]) -> None:
        if match[0] == "{" and self._opens_block(match.start()):
            self._open_block(match.start())
            return
        self._extend(match)
        self.brackets.append((match[0], match.start()))

    def _on_close(self, match: re.Match[str]) -> None:
        if self.brackets and _PAIR[self.brackets[-1][0]] == match[0]:
            self.brackets.pop()
            self._extend(match)
        elif match[0] == "}":
            self._close_block(match.start())
        else:
            self._extend(match).broken = True
            self._stray(match.start(), match[0])

    # --- pieces ---

    def _extend(self, match: re.Match[str]) -> Piece:
        if self.piece is None:
            if self.empty:
                self._close_forgotten(match)
            self.piece = Piece(match.start(), match.end(), self.pending, self.blank)
            self.pending, self.blank = [], False
        self.piece.end = match.end()
        self.empty = False
        return self.piece

    def _close_forgotten(self, match: re.Match[str]) -> None:
        """A line that starts with a statement of an outer level says that a brace was forgotten before it."""
        word = _WORD.match(match[0])
        if not word or not self.stack:
            return
        if word[0] in TOP:
            keep = 0
        elif word[0] in INNER and len(self.stack) > 1:
            keep = 1
        else:
            return
        for block in reversed(self.stack[keep:]):
            self._unclosed(block)
            block.close = match.start()
        del self.stack[keep:]

    def _finish(self) -> None:
        piece, self.piece = self.piece, None
        if piece is None:
            return
        piece.broken |= bool(self.brackets)
        for bracket, at in self.brackets[:DEEPEST]:
            self.problems.append(
                Diagnostic(
                    "QS004",
                    f"this `{bracket}` is never closed",
                    Span(at, at + 1, self.source.path),
                    f"add the missing `{_PAIR[bracket]}` before the statement ends",
                )
            )
        self.brackets.clear()
        if piece.inside and piece.inside[-1][0] >= piece.end:
            piece.after = piece.inside.pop()[1]
        self._items().append(piece)
        self.latest = piece

    def _items(self) -> list[Piece | Braces]:
        return self.stack[-1].items if self.stack else self.root

    # --- blocks ---

    def _opens_block(self, at: int) -> bool:
        if self.piece is None:
            return True
        first = _WORD.match(self.text, self.piece.start)
        if first and first[0] in ("layers", "apply", "offer"):
            return False
        return not (self.piece.end == at and self.text[at - 1] == ".")

    def _open_block(self, at: int) -> None:
        if self.piece is None:  # `{` without a word before it
            self.piece = Piece(at, at, self.pending, self.blank)
            self.pending, self.blank = [], False
        self._finish()
        head = self._items().pop()
        assert isinstance(head, Piece)
        if head.after is not None:  # a comment between the head and its brace
            head.inside.append((head.end, head.after))
            head.after = None
        block = Braces(head, at, word=self.text[head.start : head.end])
        self._items().append(block)
        self.stack.append(block)
        if len(self.stack) == DEEPEST + 1:
            head.broken = True
            self.problems.append(
                Diagnostic(
                    "QS002",
                    "blocks are nested too deeply",
                    Span(at, at + 1, self.source.path),
                    "only `task` has a block inside a block (`evaluate`); remove this `{` and its `}`",
                )
            )
        self.empty, self.latest = False, block

    def _close_block(self, at: int) -> None:
        self._finish()
        if not self.stack:
            self._stray(at, "}")
            self.empty, self.latest = False, None
            return
        block = self.stack.pop()
        block.close = at
        block.closing, self.pending, self.blank = self.pending, [], False
        self.empty, self.latest = False, block

    def _stray(self, at: int, bracket: str) -> None:
        self.problems.append(
            Diagnostic(
                "QS004",
                f"this `{bracket}` closes nothing",
                Span(at, at + 1, self.source.path),
                f"remove it, or open it with a `{_PARTNER[bracket]}` before",
            )
        )

    def _unclosed(self, block: Braces) -> None:
        span = Span(block.open, block.open + 1, self.source.path)
        name = _WORD.match(block.word)
        of = f" of `{name[0]}`" if name else ""
        self.problems.append(Diagnostic("QS004", f"this `{{`{of} is never closed", span, "add `}` after its last line"))
