"""The syntax tree of a recipe: what was written, with the span of every part and the comments around it.

A statement is a `Tree` of the grammar's rules (grammar/qspec.lark). Spans and comments' places do not count in
comparisons, so `parse(format_source(x)) == parse(x)` says that formatting changed nothing but looks. A `File` does
compare its comments' texts: none may be lost.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from qspec.diagnostics import Span

_new = tuple.__new__  # of every part of every recipe: their own `__new__` takes three times as long
VALUES = ("NUMBER", "STRING", "REFERENCE", "NAME", "SIZE")
_TIGHT_BEFORE = frozenset([")", "]", "}", ",", ".", "..", "(", "["])
_TIGHT_AFTER = frozenset(["(", "[", "{", ".", ".."])


class Leaf(NamedTuple):
    """A word or sign of the text. kind: its terminal, one of VALUES or that of a keyword or sign."""

    kind: str
    text: str
    span: Span

    @property
    def value(self) -> int | float | str:
        """A number's value, a string without its quotes, a reference without its `$`, else the text."""
        match self.kind:
            case "NUMBER":
                return float(self.text) if any(c in self.text for c in ".eE") else int(self.text)
            case "STRING":
                return self.text[1:-1]
            case "REFERENCE":
                return self.text[1:]
        return self.text

    def leaves(self) -> list[Leaf]:
        return [self]

    def moved(self, offset: int, path: str) -> Leaf:
        """The same, its span taken as one of a text that stands at `offset` of `path`."""
        kind, text, (start, end, _) = self
        return _new(Leaf, (kind, text, _new(Span, (start + offset, end + offset, path))))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Leaf) and self[:2] == other[:2]

    def __hash__(self) -> int:
        return hash(self[:2])


class Tree(NamedTuple):
    """What a rule of the grammar matched: words, signs and the trees of other rules, in order."""

    rule: str
    parts: tuple[Leaf | Tree, ...]
    span: Span

    def leaves(self) -> list[Leaf]:
        """Every word and sign."""
        return [leaf for part in self.parts for leaf in part.leaves()]

    @property
    def key(self) -> Leaf:
        """The keyword that a statement or setting starts with."""
        first = self.parts[0]
        return first if isinstance(first, Leaf) else first.key

    @property
    def values(self) -> list[Leaf]:
        """Its own names, numbers, strings and references; those of its trees are theirs."""
        return [part for part in self.parts if isinstance(part, Leaf) and part.kind in VALUES]

    def trees(self, *rules: str) -> list[Tree]:
        """Its trees, or those of some rules."""
        return [part for part in self.parts if isinstance(part, Tree) and (not rules or part.rule in rules)]

    def has(self, kind: str) -> bool:
        """Whether it has the keyword of this terminal itself."""
        return any(isinstance(part, Leaf) and part.kind == kind for part in self.parts)

    def mapped(self, change: Callable[[Leaf], Leaf]) -> Tree:
        """The tree with other leaves."""
        parts = (change(part) if isinstance(part, Leaf) else part.mapped(change) for part in self.parts)
        return self._replace(parts=tuple(parts))

    def moved(self, offset: int, path: str) -> Tree:
        """The same, its spans taken as those of a text that stands at `offset` of `path`."""
        rule, parts, (start, end, _) = self
        moved = tuple([part.moved(offset, path) for part in parts])
        return _new(Tree, (rule, moved, _new(Span, (start + offset, end + offset, path))))

    def __str__(self) -> str:
        return spelled(self.leaves())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Tree) and self[:2] == other[:2]

    def __hash__(self) -> int:
        return hash(self[:2])


def spelled(leaves: Iterable[Leaf]) -> str:
    """The canonical spelling: one space between words, none inside brackets, around dots and after commas in braces."""
    found, before, braces = "", "", 0
    for leaf in leaves:
        text = leaf.text
        tight = text in _TIGHT_BEFORE or before in _TIGHT_AFTER or (before == "," and braces > 0)
        braces += (text == "{") - (text == "}")
        found += text if tight or not found else f" {text}"
        before = text
    return found


@dataclass(frozen=True)
class Comments:
    """What a formatter must put back: lines before, at the end of the line, and whether a blank line came
    first."""

    before: tuple[str, ...] = ()
    after: str | None = None
    blank: bool = False
    gaps: tuple[bool, ...] = ()  # for each line of `before`: whether a blank line came first


@dataclass(frozen=True)
class Item:
    """A statement or setting with its comments."""

    node: Tree | Block
    comments: Comments = field(default=Comments(), compare=False)


@dataclass(frozen=True)
class Block:
    """`KIND NAME { items }`; kind "task" stands inside `evaluate`, with or without braces."""

    span: Span = field(compare=False, repr=False)
    kind: str
    head: Span = field(compare=False, repr=False)
    name: Leaf | None
    items: tuple[Item, ...]
    opening: str | None = field(default=None, compare=False)  # the comment after `{`
    closing: Comments = field(default=Comments(), compare=False)  # comments before `}`

    @property
    def settings(self) -> list[Tree]:
        """Its settings, without blocks inside."""
        return [item.node for item in self.items if isinstance(item.node, Tree)]


@dataclass(frozen=True)
class File:
    """A whole recipe as written. comments: every comment's text, in order."""

    path: str = field(compare=False)
    items: tuple[Item, ...]
    comments: tuple[str, ...] = ()
    closing: Comments = field(default=Comments(), compare=False)
