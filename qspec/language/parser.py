"""Text -> syntax tree, with as many independent diagnostics as there are independent mistakes."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from qspec.diagnostics import Diagnostic, Edit, Source, Span, closest, listed, quote
from qspec.errors import CONTROL
from qspec.files import open_input
from qspec.language import grammar
from qspec.language.grammar import Mismatch
from qspec.language.mistakes import describe, owner
from qspec.language.pieces import BLOCK_KINDS, LINE_KINDS, TOP, Braces, Piece, as_comments, cut
from qspec.language.syntax import Block, File, Item, Leaf, Tree
from qspec.language.versions import other_version

MAX_BYTES = 1 << 20
MAX_STATEMENTS = 8192
MAX_STATEMENT = 16384  # characters
MAX_PROBLEMS = 50


def decode(data: bytes, path: str) -> tuple[Source, list[Diagnostic]]:
    """Bytes -> source; not UTF-8, binary, deceitful or larger than 1 MiB is a diagnostic (and an empty
    source)."""
    nothing = Source(path, "")
    if len(data) > MAX_BYTES:
        message = f"the file has {len(data)} bytes; a recipe has at most {MAX_BYTES}"
        return nothing, [
            Diagnostic("QS002", message, Span(0, 0, path), "check that this is a recipe; split it with `extends`")
        ]
    try:
        text = data.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        message = f"the file is not UTF-8 text (byte {error.start})"
        at = len(data[: error.start].decode("utf-8-sig"))
        shown = Source(path, data.decode("utf-8-sig", errors="replace"))
        return shown, [Diagnostic("QS001", message, Span(at, at + 1, path), "save it as UTF-8; a recipe is plain text")]
    if control := CONTROL.search(text):
        message = f"the file holds the control character U+{ord(control[0]):04X}"
        span = Span(control.start(), control.end(), path)
        return Source(path, text), [Diagnostic("QS001", message, span, "remove it; a recipe is plain text")]
    return Source(path, text), []


def read(path: str | Path) -> tuple[Source, list[Diagnostic]]:
    """Reads a recipe; raises OSError where the file cannot be read."""
    return decode(read_bytes(path), str(path))


def read_bytes(path: str | Path) -> bytes:
    """A recipe's bytes, so many that `decode` sees whether they are too many. Raises OSError as `read`."""
    with open_input(Path(path)) as file:
        return file.read(MAX_BYTES + 1)


@lru_cache(maxsize=8)  # an editor asks several questions of one text, and its bases seldom change
def parse(source: Source) -> tuple[File, tuple[Diagnostic, ...]]:
    """The syntax tree of everything that could be understood, and what could not."""
    return _Parser(source).run()


class _Parser:
    def __init__(self, source: Source) -> None:
        self.source = source
        self.path = source.path
        self.problems: list[Diagnostic] = []
        self.statements = 0

    def run(self) -> tuple[File, tuple[Diagnostic, ...]]:
        if other := other_version(self.source):
            return File(self.path, ()), (other,)
        pieces = cut(self.source)
        self.problems += pieces.problems
        items: list[Item] = []
        for piece in pieces.items:
            items += self._statement(piece)
            if len(self.problems) > MAX_PROBLEMS or self.statements > MAX_STATEMENTS:
                break
        if self.statements > MAX_STATEMENTS:
            span = Span(len(self.source.text), len(self.source.text), self.path)
            message = f"the recipe has more than {MAX_STATEMENTS} statements"
            self._report("QS002", message, span, "write selectors that cover more layers with one rule")
        file = File(self.path, tuple(items), tuple(pieces.comments), as_comments(pieces.closing))
        return file, tuple(self.problems)

    def _report(self, code: str, message: str, span: Span, hint: str, edits: tuple[Edit, ...] = ()) -> None:
        self.problems.append(Diagnostic(code, message, span, hint, edits=edits))

    # --- statements ---

    def _statement(self, piece: Piece | Braces) -> list[Item]:
        self.statements += 1
        head = piece.head if isinstance(piece, Braces) else piece
        word = self._word(head)
        if word in BLOCK_KINDS:
            return self._block_statement(piece, word)
        if word not in LINE_KINDS:
            if not head.broken:
                self._unknown_statement(head, word)
            return []
        if isinstance(piece, Braces):
            span = Span(piece.open, piece.open + 1, self.path)
            self._report(
                "QS005",
                f"`{word}` takes no block",
                span,
                "remove the `{`, or start the block on its own line",
            )
            return []
        node = self._parse(LINE_KINDS[word], head, None)
        return [Item(node, head.comments())] if node else []

    def _block_statement(self, piece: Piece | Braces, kind: str) -> list[Item]:
        if isinstance(piece, Piece):
            self._parse(f"{kind}_head", piece, None)
            if not piece.broken and not self._reported_in(piece):
                span = Span(piece.end - 1, piece.end, self.path)
                self._report("QS005", f"`{kind}` needs a block", span, "open it with `{` at the end of this line")
            return []
        head = self._parse(f"{kind}_head", piece.head, None)
        name = head.values[0] if head and head.values else None
        items = self._items(kind, piece.items)
        return [] if kind in ("recipe", "scheme") and name is None else [self._block(kind, name, piece, items)]

    def _block(self, kind: str, name: Leaf | None, braces: Braces, items: tuple[Item, ...]) -> Item:
        head = Span(braces.head.start, braces.head.end, self.path)
        span = Span(braces.head.start, braces.close + 1, self.path)
        node = Block(span, kind, head, name, items, braces.opening, as_comments(braces.closing))
        return Item(node, braces.head.comments())

    def _items(self, kind: str, pieces: list[Piece | Braces]) -> tuple[Item, ...]:
        items: list[Item] = []
        for piece in pieces:
            self.statements += 1
            if isinstance(piece, Braces):
                items += self._inner_block(kind, piece)
            else:
                items += self._settings(kind, piece)
        return tuple(items)

    def _settings(self, kind: str, piece: Piece) -> list[Item]:
        """The settings on one line: the first has the comments before, the last the comment after."""
        body = self._parse(f"{kind}_body", piece, kind)
        if body is None:
            return []
        nodes = [_task(tree) if tree.rule == "task" else tree for tree in body.trees()]
        comments = piece.comments()
        items = [Item(node) for node in nodes]
        items[-1] = Item(nodes[-1], type(comments)(after=comments.after))
        after = comments.after if len(nodes) == 1 else None
        items[0] = Item(nodes[0], type(comments)(comments.before, after, comments.blank, comments.gaps))
        return items

    def _inner_block(self, kind: str, braces: Braces) -> list[Item]:
        """`task NAME { ... }`, perhaps after other settings on the same line."""
        if braces.head.broken:
            return []
        if kind != "evaluate":
            span = Span(braces.open, braces.open + 1, self.path)
            self._report(
                "QS005",
                f"`{kind}` has no blocks inside",
                span,
                "remove this block, or close the outer one before it",
            )
            return []
        items = self._settings(kind, braces.head)
        last = items[-1].node if items else None
        inner = self._items("task", braces.items)
        if not isinstance(last, Block) or last.kind != "task":
            if items:
                span = Span(braces.open, braces.open + 1, self.path)
                self._report("QS005", "only `task` has a block here", span, "write `task NAME { ... }`")
            return items
        span = Span(last.span.start, braces.close + 1, self.path)
        block = Block(span, "task", last.head, last.name, inner, braces.opening, as_comments(braces.closing))
        comments = items[-1].comments
        after = braces.head.after or comments.after
        return [
            *items[:-1],
            Item(block, type(comments)(comments.before, after, comments.blank, comments.gaps)),
        ]

    # --- one piece ---

    def _word(self, piece: Piece) -> str:
        code = self.source.text[piece.start : min(piece.end, piece.start + 80)]
        word = code.split(maxsplit=1)[0] if code.strip() else ""
        for i, char in enumerate(word):
            if not (char.isalnum() or char == "_"):
                return word[:i]
        return word

    def _parse(self, start: str, piece: Piece, block: str | None) -> Tree | None:
        """The tree of the piece, or None after a report."""
        if piece.broken:
            return None
        code = self.source.text[piece.start : piece.end]
        if len(code) > MAX_STATEMENT:
            message = f"the statement has {len(code)} characters; {MAX_STATEMENT} are the most"
            span = Span(piece.start, piece.start + 1, self.path)
            self._report("QS002", message, span, "write a selector that covers more, or several statements")
            return None
        try:
            tree, problems = grammar.parse(start, code, self.path, piece.start)
        except Mismatch as error:
            self._syntax_error(error, start, piece, block)
            return None
        self.problems += problems
        return None if problems else tree

    def _reported_in(self, piece: Piece) -> bool:
        return any(piece.start <= d.span.start <= piece.end for d in self.problems)

    def _unknown_statement(self, piece: Piece, word: str) -> None:
        span = Span(piece.start, max(piece.start + 1, piece.start + len(word)), self.path)
        if not word:
            shown = quote(self.source.text[piece.start : piece.start + 1] or "{")
            self._report(
                "QS006",
                f"a statement cannot start with {shown}",
                span,
                "start it with a word such as `layers`",
            )
            return
        edits: tuple[Edit, ...] = ()
        guess = closest(word, TOP)
        block = owner(word)
        if guess:
            hint, edits = f"did you mean `{guess}`?", (Edit(span, guess),)
        elif block:
            hint, edits = f"`{word}` is a setting: move it into the `{block}` block", edits
        else:
            hint, edits = f"a statement is one of {listed(sorted(TOP))}", edits
        self._report("QS006", f"there is no statement {quote(word)}", span, hint, edits)

    def _syntax_error(self, error: Mismatch, start: str, piece: Piece, block: str | None) -> None:
        mistake = describe(error, self.source.text[piece.start : piece.end], start, block)
        span = Span(piece.start + mistake.start, piece.start + mistake.end, self.path)
        edits = (Edit(span, mistake.instead),) if mistake.instead is not None else ()
        self._report(mistake.code, mistake.message, span, mistake.hint, edits)


def _task(tree: Tree) -> Block:
    """`task NAME`, which may get braces."""
    return Block(tree.span, "task", tree.span, tree.values[0], ())
