"""What stands at a place of a recipe, and where its names are declared and used: for editors."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from qspec.diagnostics import Span
from qspec.language.merge import Merged
from qspec.language.syntax import VALUES, Block, File, Leaf, Tree

Node = Block | Tree | Leaf


def path_to(file: File, offset: int) -> tuple[Node, ...]:
    """The statement around an offset and its parts, down to the word that the offset is in or at; empty between
    statements."""
    for item in file.items:
        if _holds(item.node.span, offset):
            return (item.node, *_below(item.node, offset))
    return ()


def _holds(span: Span, offset: int) -> bool:
    return span.start <= offset <= span.end


def _below(node: Block | Tree, offset: int) -> tuple[Node, ...]:
    parts = [part for part in _parts(node) if _holds(part.span, offset)]
    if not parts:
        return ()
    best = max(parts, key=lambda part: not isinstance(part, Leaf) or part.kind in VALUES or part.text.isidentifier())
    return (best,) if isinstance(best, Leaf) else (best, *_below(best, offset))


def _parts(node: Block | Tree) -> Iterator[Node]:
    """Everything in a node that has a place, its keyword too."""
    if isinstance(node, Tree):
        yield from node.parts
        return
    start = node.head.start
    yield Leaf(node.kind.upper(), node.kind, Span(start, start + len(node.kind), node.head.path))
    if node.name is not None:
        yield node.name
    for item in node.items:
        yield item.node


@dataclass(frozen=True)
class Symbol:
    """A name of the author's, where it is declared or used. span: of the name alone, without the `$` of a param."""

    kind: Literal["scheme", "param"]
    name: str
    span: Span
    declares: bool

    @property
    def written(self) -> Span:
        """With the `$` of a param that is used."""
        used = self.kind == "param" and not self.declares
        return self.span._replace(start=self.span.start - used)

    def same(self, other: Symbol) -> bool:
        """Whether both are of one name."""
        return (self.kind, self.name) == (other.kind, other.name)


def symbols(file: File) -> list[Symbol]:
    """Every scheme and param that a file names, in order."""
    return [symbol for item in file.items for symbol in _symbols(item.node)]


def _symbols(node: Block | Tree) -> Iterator[Symbol]:
    if isinstance(node, Block):
        if node.kind == "scheme" and node.name is not None:
            yield Symbol("scheme", node.name.text, node.name.span, declares=True)
        for item in node.items:
            yield from _symbols(item.node)
        return
    if node.rule == "param":
        yield Symbol("param", node.values[0].text, node.values[0].span, declares=True)
    if node.rule in ("layers", "offer"):
        names = (name for name in node.values if name.text != "keep")
        yield from (Symbol("scheme", name.text, name.span, declares=False) for name in names)
    for leaf in node.leaves():
        if leaf.kind == "REFERENCE":
            start, end, path = leaf.span
            yield Symbol("param", leaf.text[1:], Span(start + 1, end, path), declares=False)


def declaration(merged: Merged, symbol: Symbol) -> Span | None:
    """Where the name is declared that counts: in the recipe, else in the nearest of its bases."""
    if symbol.kind == "param":
        node = merged.params.get(symbol.name)
        return node.values[0].span if node else None
    block = merged.schemes.get(symbol.name)
    return block.name.span if block and block.name else None
