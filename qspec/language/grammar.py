"""grammar/qspec.lark as lark reads it: text -> tree, or where it stops and what could have come there.

Nothing is cached on disk: making the tables takes less than a tenth of a second, and lark's cache is a pickle, which
runs what it holds when it is read.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from typing import Any

import lark

from qspec import resources
from qspec.diagnostics import Diagnostic, Span, quote
from qspec.language.pieces import BLOCK_KINDS, LINE_KINDS
from qspec.language.syntax import Leaf, Tree

STARTS = (
    *LINE_KINDS.values(),
    *(f"{kind}_head" for kind in BLOCK_KINDS),
    *(f"{kind}_body" for kind in (*BLOCK_KINDS, "task")),
    "selector",
)
END = "$END"
MAX_INDEX = 4096
MAX_TERMS = 256  # in one selector: terms, names in braces, indices


_SHOWN = {
    "NAME": "a name",
    "NUMBER": "a number",
    "STRING": "a string in quotes",
    "REFERENCE": "a `$param`",
    "SIZE": "a size such as `128x128`",
    END: "the end of the line",
}


@dataclass
class Mismatch(Exception):  # noqa: N818 - an answer, which the parser turns into a diagnostic
    """The text stops making sense at [start, end): `found` ("" at its end), where one of the terminals `expected`
    could have come."""

    found: str
    start: int
    end: int
    expected: frozenset[str]

    @property
    def names(self) -> list[str]:
        """What was expected, as an author would write it; keywords and signs, in backticks, first."""
        shown = (_SHOWN.get(terminal) or f"`{literals()[terminal]}`" for terminal in self.expected)
        return sorted(shown, key=lambda name: (name[0] != "`", name))

    def __str__(self) -> str:
        wanted = self.names if len(self.names) <= 6 else [*self.names[:6], "…"]
        choice = f"{', '.join(wanted[:-1])} or {wanted[-1]}" if len(wanted) > 1 else "".join(wanted)
        what = f"found {quote(self.found)}" if self.found else "the line ends"
        return f"{what} where {choice or 'the end'} was expected"


@cache
def lark_parser(*starts: str) -> lark.Lark:
    """The parser for some of the grammar's rules."""
    text = (resources.grammar() / "qspec.lark").read_text(encoding="utf-8")
    return lark.Lark(
        text,
        parser="lalr",
        start=list(starts),
        propagate_positions=True,
        maybe_placeholders=False,
        keep_all_tokens=True,
    )


@cache
def literals() -> dict[str, str]:
    """Terminal -> the keyword or sign that it stands for."""
    return {t.name: t.pattern.value for t in lark_parser(*STARTS).terminals if t.pattern.type == "str"}


def parse(start: str, text: str, path: str = "", offset: int = 0) -> tuple[Tree, list[Diagnostic]]:
    """The tree of a text for a start rule, and what is wrong with it that the grammar cannot say.

    path, offset: where the text stands. Raises Mismatch.
    """
    tree, problems = _parsed(start, text)
    return tree.moved(offset, path), [replace(p, span=p.span.moved(offset, path)) for p in problems]


@lru_cache(maxsize=4096)
def _parsed(start: str, text: str) -> tuple[Tree, list[Diagnostic]]:
    """`parse` for a text that stands alone: recipes have many statements in common."""
    try:
        found = lark_parser(*STARTS).parse(text, start=start)
    except lark.UnexpectedInput as error:
        raise _mismatch(error, text) from None
    reader = _Reader([])
    return reader.tree(found), reader.problems


def _mismatch(error: Any, text: str) -> Mismatch:
    expected = frozenset(error.interactive_parser.accepts())
    if isinstance(error, lark.UnexpectedCharacters):
        at = error.pos_in_stream
        return Mismatch(text[at], at, at + 1, expected)
    if error.token.type == END:
        return Mismatch("", len(text), len(text), expected)
    return Mismatch(str(error.token), error.token.start_pos, error.token.end_pos, expected)


@dataclass
class _Reader:
    """Lark's trees -> ours, without what may be written or left out."""

    problems: list[Diagnostic]

    def tree(self, found: Any) -> Tree:
        parts = [self.tree(part) if isinstance(part, lark.Tree) else self._leaf(part) for part in found.children]
        rule = str(found.data)
        match rule:
            case "arguments" | "rollouts" if isinstance(parts[-2], Leaf) and parts[-2].kind == "COMMA":
                del parts[-2]
            case "apply" if len(parts) == 4:
                after = Span(parts[1].span.end, parts[1].span.end)
                parts.insert(2, Tree("arguments", (Leaf("LPAR", "(", after), Leaf("RPAR", ")", after)), after))
        tree = Tree(rule, tuple(parts), Span(found.meta.start_pos, found.meta.end_pos))
        match rule:
            case "index":
                self._check_index(tree)
            case "selector":
                self._check_size(tree)
        return tree

    def _leaf(self, token: Any) -> Leaf:
        leaf = Leaf(token.type, str(token), Span(token.start_pos, token.end_pos))
        match leaf.kind:
            case "NAME" if len(token) > 64:
                message = f"the name {quote(leaf.text, 20)} has {len(token)} characters"
                self._report("QS002", message, leaf, "names have at most 64")
            case "NUMBER" if len(token) > 24:
                message = f"the number {quote(leaf.text, 20)} has too many digits"
                self._report("QS009", message, leaf, "write at most 24 characters")
            case "NUMBER" if not math.isfinite(float(token)):
                self._report("QS009", f"{quote(leaf.text)} is not a finite number", leaf, "write a smaller number")
        return leaf

    def _report(self, code: str, message: str, part: Leaf | Tree, hint: str) -> None:
        self.problems.append(Diagnostic(code, message, part.span, hint))

    def _check_index(self, tree: Tree) -> None:
        wrong = [leaf for leaf in tree.values if not _is_index(leaf)]
        for leaf in wrong:
            message = f"{quote(leaf.text)} is not a block index"
            self._report("QS032", message, leaf, "write a whole number, such as 3 or -1")
        if len(tree.values) == 2 and not wrong:
            low, high = (int(leaf.text) for leaf in tree.values)
            if (low < 0) == (high < 0) and low > high:
                self._report("QS032", f"the range {low}..{high} is empty", tree, f"write {high}..{low}")

    def _check_size(self, selector: Tree) -> None:
        segments = [segment for role in selector.trees("role") for segment in role.trees()]
        count = sum(len(s.values) + len(s.trees()) for s in segments) + len(selector.trees("module"))
        if count > MAX_TERMS:
            message = f"the selector has {count} parts"
            self._report("QS002", message, selector, f"write at most {MAX_TERMS}; use `*` or ranges")


def _is_index(leaf: Leaf) -> bool:
    return len(leaf.text) <= 24 and isinstance(leaf.value, int) and abs(leaf.value) <= MAX_INDEX
