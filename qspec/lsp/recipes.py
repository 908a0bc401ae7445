"""The recipes that an editor has open, over those on disk, and the answers about them. Offsets in, spans out."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TypeVar

from qspec import passes
from qspec.checked import lock_warnings
from qspec.diagnostics import Diagnostic, Edit, RecipeError, Source, Span
from qspec.errors import QspecError
from qspec.language import Understood, understand
from qspec.language.completion import BEGUN, Completion, Names, completions
from qspec.language.fixes import fix
from qspec.language.formatter import format_source
from qspec.language.merge import Merged, merge
from qspec.language.parser import MAX_BYTES, parse, read
from qspec.language.places import Node, Symbol, declaration, path_to, symbols
from qspec.language.syntax import Block, File, Tree
from qspec.lsp.text import Document, Place
from qspec.models.registry import FAMILIES
from qspec.planned import Planned, plan_of

MOST_FILES = 2000  # of a workspace that are looked at
MOST_USERS = 4  # of a base, through which it is checked
T = TypeVar("T")


@dataclass(frozen=True)
class Outline:
    """A statement or block, for the editor's list. name_span: what is selected there."""

    name: str
    kind: str  # of a block, or its statement's rule
    span: Span
    name_span: Span
    children: tuple[Outline, ...] = ()


@dataclass
class Recipes:
    """Every answer is about the texts as they are now; what they take to compute is kept until one changes.

    model: in whose terms hovers speak, where it is not the recipe's own. folders: the workspace.
    """

    encoding: str = "utf-16"
    model: str | None = None
    folders: Sequence[Path] = ()
    opened: dict[str, Document] = field(default_factory=dict)
    _kept: dict[tuple[str, str], object] = field(default_factory=dict)
    _plans: dict[str, Planned] = field(default_factory=dict)  # the last one that could be made
    _extending: dict[str, list[str]] = field(default_factory=dict)  # kept while somebody types

    # --- texts ---

    def open(self, path: str, text: str) -> None:
        self.opened[path] = Document(path, text, self.encoding)
        self.forget()

    def change(self, path: str, text: str, between: tuple[Place, Place] | None = None) -> None:
        """Replaces the text between two places, or all of it."""
        before = self.opened[path]
        self.opened[path] = (
            before.changed(*between, text) if between is not None else Document(path, text, self.encoding)
        )
        self._kept.clear()

    def close(self, path: str) -> None:
        self.opened.pop(path, None)
        self._plans.pop(path, None)
        self.forget()

    def forget(self) -> None:
        """What was computed no longer holds: files changed."""
        self._kept.clear()
        self._extending.clear()

    def document(self, path: str) -> Document:
        """A recipe as the editor has it, else as it is on disk. Raises OSError."""
        return self.opened.get(path) or self._once("document", path, self._from_disk)

    def _from_disk(self, path: str) -> Document:
        return Document(path, read(path)[0].text, self.encoding)

    def _read(self, path: Path) -> tuple[Source, list[Diagnostic]]:
        """A base, as `parser.read`."""
        name = os.path.normpath(path)
        if name in self.opened:
            return self.opened[name].source, self.opened[name].problems
        source, problems = read(path)
        return Source(name, source.text), problems

    def _once(self, what: str, path: str, make: Callable[[str], T]) -> T:
        key = (what, path)
        if key not in self._kept:
            self._kept[key] = make(path)
        return self._kept[key]  # type: ignore[return-value]

    # --- what they say ---

    def _source(self, path: str) -> Source:
        """A text that is too large to be a recipe is not looked at."""
        source = self.document(path).source
        return source if len(source.text) <= MAX_BYTES else Source(path, "")

    def file(self, path: str) -> File:
        """The syntax tree of what can be parsed."""
        return self._once("file", path, lambda path: parse(self._source(path))[0])

    def merged(self, path: str) -> Merged:
        """With its bases."""
        return self._once("merged", path, lambda path: merge(self._source(path), read=self._read))

    def understood(self, path: str) -> Understood:
        return self._once("understood", path, lambda path: self._understand(self._source(path)))

    def _understand(self, source: Source) -> Understood:
        return understand(source, passes.available(), (), FAMILIES, self._read)

    def problems(self, path: str) -> tuple[Diagnostic, ...]:
        """As `qspec check` finds them: in a file that can only be extended, through those that do so."""
        if self.document(path).problems:
            return tuple(self.document(path).problems)
        if users := self.users(path):
            through = (problem for user in users for problem in self.understood(user).problems)
            return tuple(dict.fromkeys(problem for problem in through if problem.span.path == path))
        found = self.understood(path)
        return (*found.problems, *lock_warnings(found))

    def users(self, path: str) -> list[str]:
        """For a file that is no recipe by itself: some recipes of the workspace that extend it."""
        if "recipe" in self.merged(path).blocks:
            return []
        if path not in self._extending:
            extending = (p for p in self.files() if p != path and path in self.chain(p))
            whole = (p for p in extending if "recipe" in self.merged(p).blocks)
            self._extending[path] = list(islice(whole, MOST_USERS))
        return self._extending[path]

    def plan(self, path: str) -> Planned | None:
        """The plan for the chosen model; where the recipe has errors now, the last one. None where there is none."""
        return self._once("plan", next(iter(self.users(path)), path), self._plan)

    def _plan(self, path: str) -> Planned | None:
        with suppress(RecipeError):  # the diagnostics say why
            loaded = self.understood(path).loaded()
            for model in dict.fromkeys((self.model, None)):  # the chosen model may be of another family
                with suppress(QspecError):
                    self._plans[path] = plan_of(loaded, model)
                    break
        return self._plans.get(path)

    def complete(self, path: str, offset: int) -> tuple[Span, list[Completion]]:
        """The words that may stand at an offset, and what they replace."""
        source = self.document(path).source
        line = source.text[:offset].rpartition("\n")[2]
        bases = self._beside(path) if line.lstrip().startswith("extends") else []
        names = Names.of(self.merged(path), passes.available(), FAMILIES, bases)
        begun = BEGUN.search(source.text[:offset])
        start = begun.start() if begun else offset
        return Span(start, offset, path), completions(source, offset, names)

    def _beside(self, path: str) -> list[str]:
        """What a recipe can extend: those in its folder and below, as it would name them."""
        folder = Path(path).parent
        return sorted(str(Path(p).relative_to(folder).as_posix()) for p in self._below(folder, deep=True) if p != path)

    def at(self, path: str, offset: int) -> tuple[Node, ...]:
        return path_to(self.file(path), offset)

    def symbol(self, path: str, offset: int) -> Symbol | None:
        """The scheme or param that is named at an offset."""
        return next((s for s in symbols(self.file(path)) if s.written.start <= offset <= s.written.end), None)

    def definition(self, path: str, offset: int) -> Span | None:
        """Where a name is declared; for `extends`, the start of the base."""
        symbol = self.symbol(path, offset)
        if symbol is not None:
            return declaration(self.merged(path), symbol)
        node = self.at(path, offset)[:1]
        if node and isinstance(node[0], Tree) and node[0].rule == "extends":
            base = self.base(path)
            return Span(0, 0, base) if base else None
        return None

    # --- several files ---

    def base(self, path: str) -> str | None:
        """The file that a recipe extends, where there is one."""
        for item in self.file(path).items:
            if isinstance(item.node, Tree) and item.node.rule == "extends":
                found = os.path.normpath(Path(path).parent / str(item.node.values[0].value))
                return found if found in self.opened or Path(found).is_file() else None
        return None

    def chain(self, path: str) -> list[str]:
        """A recipe and its bases, nearest first."""
        found = [path]
        while (base := self.base(found[-1])) is not None and base not in found:
            found.append(base)
        return found

    def files(self) -> list[str]:
        """The recipes of the workspace: those below its folders (without one, beside the open ones), and the open
        ones."""
        folders = self.folders or sorted({Path(path).parent for path in self.opened})
        found = dict.fromkeys(self.opened)
        for folder in folders:
            for file in self._below(folder, deep=bool(self.folders)):
                found.setdefault(file)
        return list(found)

    def _below(self, folder: Path, deep: bool) -> Iterator[str]:
        pattern = "**/*.qs" if deep else "*.qs"
        for count, file in enumerate(sorted(folder.glob(pattern))):
            if count == MOST_FILES:
                return
            if not any(part.startswith(".") for part in file.relative_to(folder).parts):
                yield str(file)

    def sharing(self, path: str, symbol: Symbol) -> list[str]:
        """The recipes in which this name means the same: those that have a base in common that declares it."""
        declaring = {p for p in self.chain(path) if any(s.declares and s.same(symbol) for s in symbols(self.file(p)))}
        return [p for p in dict.fromkeys((*self.chain(path), *self.files())) if declaring & set(self.chain(p))]

    def uses(self, path: str, symbol: Symbol) -> list[Symbol]:
        """Everywhere that a name stands, in all recipes that share it."""
        return [s for p in self.sharing(path, symbol) for s in symbols(self.file(p)) if s.same(symbol)]

    # --- lists and texts ---

    def outline(self, path: str) -> list[Outline]:
        """The statements and blocks of a recipe."""
        return [_outline(item.node) for item in self.file(path).items]

    def formatted(self, path: str) -> list[Edit]:
        """What `qspec fmt` would change: the lines between the first and the last that differ. Raises RecipeError where
        it cannot be parsed."""
        document = self.document(path)
        if document.problems:
            raise RecipeError(document.problems, {path: document.source})
        return _changes(document.source, format_source(document.source.text, path))

    def fixed(self, path: str) -> list[Edit]:
        """What `qspec check --fix` would change, in a recipe by itself."""
        document = self.document(path)
        if document.problems or self.users(path):
            return []
        fixed = fix(document.source, lambda text: self._understand(text).problems)
        return _changes(document.source, fixed.source.text)


def _changes(source: Source, after: str) -> list[Edit]:
    """The lines between the first and the last that differ, where any does."""
    if source.text == after:
        return []
    old, new = (text.splitlines(keepends=True) for text in (source.text, after))
    first = _common(old, new)
    last = _common(old[first:][::-1], new[first:][::-1])
    start, end = source.line_start(first + 1), source.line_start(len(old) - last + 1)
    return [Edit(Span(start, end, source.path), "".join(new[first : len(new) - last]))]


def _common(a: Sequence[str], b: Sequence[str]) -> int:
    """How many lines both start with."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _outline(node: Block | Tree) -> Outline:
    if isinstance(node, Tree):
        return Outline(_title(node), node.rule, node.span, node.values[0].span if node.values else node.span)
    name = f"{node.kind} {node.name.text}" if node.name else node.kind
    children = tuple(_outline(item.node) for item in node.items)
    return Outline(name, node.kind, node.span, node.name.span if node.name else node.head, children)


def _title(node: Tree) -> str:
    text = str(node)
    return text if len(text) <= 80 else f"{text[:79]}…"
