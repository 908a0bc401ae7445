"""Role selectors: `blocks[0, 4..7, -1].{attention,mlp}.*`, `head`, `module("regex")`."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TypeAlias

from qspec.diagnostics import Span, quote
from qspec.language.grammar import Mismatch, parse
from qspec.language.patterns import compiled, problem
from qspec.language.syntax import Leaf, Tree
from qspec.models.family import ROUTER, ModuleEntry, Path, Role


@dataclass(frozen=True)
class Indices:
    """`*` (low and high None), `3` (low = high) or `4..7`, both ends included; negative numbers count from
    the end."""

    low: int | None
    high: int | None
    span: Span = field(compare=False)

    def __str__(self) -> str:
        if self.low is None:
            return "*"
        return str(self.low) if self.low == self.high else f"{self.low}..{self.high}"


@dataclass(frozen=True)
class Segment:
    """One step of a role: `blocks[0, 4..7]`, `q`, `{gate,up}`; no names at all is `*`."""

    names: tuple[Leaf, ...]
    indices: tuple[Indices, ...]

    @cached_property
    def words(self) -> frozenset[str]:
        """The names without their places."""
        return frozenset(name.text for name in self.names)


@dataclass(frozen=True)
class Term:
    """Something between commas; its spelling says it all."""

    text: str
    span: Span = field(compare=False)

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class RoleTerm(Term):
    """`blocks[*].mlp.{gate,up}`."""

    segments: tuple[Segment, ...] = field(compare=False)


@dataclass(frozen=True)
class ModuleTerm(Term):
    """`module("regex")`: modules whose whole checkpoint name the pattern matches."""

    pattern: str = field(compare=False)
    pattern_span: Span = field(compare=False)


AnyTerm: TypeAlias = RoleTerm | ModuleTerm


def _term(tree: Tree) -> AnyTerm:
    if tree.rule == "module":
        return ModuleTerm(str(tree), tree.span, str(tree.values[0].value), tree.values[0].span)
    segments = tuple(Segment(tuple(s.values), tuple(map(_indices, s.trees()))) for s in tree.trees())
    return RoleTerm(str(tree), tree.span, segments)


def _indices(tree: Tree) -> Indices:
    numbers = [int(leaf.text) for leaf in tree.values]
    return Indices(numbers[0], numbers[-1], tree.span) if numbers else Indices(None, None, tree.span)


@dataclass(frozen=True)
class Selector:
    """What a rule or a pass is about; `text` is the canonical spelling. Two selectors are equal if they
    read equal.

    Names only what can be quantized: linears, the embedding and the head.
    """

    text: str

    @classmethod
    def of(cls, tree: Tree) -> Selector:
        """From the syntax tree, keeping its spans."""
        selector = cls(str(tree))
        vars(selector)["terms"] = tuple(map(_term, tree.trees()))
        return selector

    @cached_property
    def terms(self) -> tuple[AnyTerm, ...]:
        """The parts between commas. Raises ValueError where the text is not a selector."""
        try:
            tree, problems = parse("selector", self.text)
        except Mismatch as error:
            raise ValueError(f"{quote(self.text)} is not a selector: {error}") from None
        if problems:
            raise ValueError(problems[0].message)
        terms = tuple(map(_term, tree.trees()))
        for term in terms:
            wrong = problem(term.pattern) if isinstance(term, ModuleTerm) else None
            if wrong:
                raise ValueError(f"{term} cannot be used: {wrong}")
        return terms

    def matches(self, entry: ModuleEntry, layers: int) -> bool:
        """Whether any term selects the module of a model with `layers` blocks."""
        return any(term_matches(term, entry, layers) for term in self.terms)

    @property
    def raw(self) -> bool:
        """Whether a term names modules by regular expression."""
        return any(isinstance(term, ModuleTerm) for term in self.terms)


def term_matches(term: AnyTerm, entry: ModuleEntry, layers: int) -> bool:
    """Whether one term selects the module, by any of its names; a `*` at the end takes everything below."""
    tied = entry.tied
    return name_matches(term, entry, layers) or (tied is not None and name_matches(term, tied, layers))


def name_matches(term: AnyTerm, name: ModuleEntry, layers: int) -> bool:
    """Whether the term selects the module by this one of its names. A pattern never selects a router."""
    if isinstance(term, ModuleTerm):
        return name.role.part != ROUTER and compiled(term.pattern).fullmatch(name.module)
    return path_matches(term, name.role.path, layers)


def path_matches(term: RoleTerm, path: Path, layers: int) -> bool:
    """Whether the term's steps fit the path. A router's last step must be named: it chooses experts, and no `*` means
    it."""
    steps = term.segments
    if len(path) < len(steps) or (len(path) > len(steps) and steps[-1].names):
        return False
    last = path[-1][0]
    if last == "router" and last not in steps[-1].words:
        return False
    counts = (layers, *[0] * len(path))  # nobody counts experts from the end
    return all(
        step_matches(step, name, index, count) for step, (name, index), count in zip(steps, path, counts, strict=False)
    )


def step_matches(step: Segment, name: str, index: int | None, layers: int) -> bool:
    """Whether one step fits: `*` any, `{a,b}` either, `blocks[...]` by index."""
    if not step.names:
        return True
    if name not in step.words:
        return False
    if index is None or not step.indices:
        return index is None and not step.indices
    return any(part.low is None or index in index_range(part, layers) for part in step.indices)


def index_range(part: Indices, layers: int) -> range:
    """The blocks that one index part names, negative ones counted from the end; may leave 0 .. layers - 1."""
    if part.low is None or part.high is None:
        return range(layers)
    low, high = (i + layers if i < 0 else i for i in (part.low, part.high))
    return range(low, high + 1)


MOST_TERMS = 1 << 13  # that a table remembers


class ModuleTable:
    """The modules of a model with `layers` blocks by their roles: finds those that a term selects without asking each.

    Answers are those of `Selector.matches`, and are kept: an editor checks the same terms at every keystroke.
    """

    def __init__(self, modules: Sequence[ModuleEntry], layers: int) -> None:
        self.modules = tuple(modules)
        self.layers = layers
        alike: dict[tuple[str, int | None, bool], dict[int | None, list[int]]] = {}
        for place, entry in enumerate(self.modules):
            for name in entry.names:
                role = name.role
                own = alike.setdefault((role.part, role.expert, role.block is None), {})
                own.setdefault(role.block, []).append(place)
        self._alike: dict[Path, dict[int | None, list[int]]] = {}  # role without its block -> block -> places
        for (part, expert, outside), own in alike.items():
            (first, _), *rest = Role(part, None if outside else 0, expert).path
            self._alike[((first, None), *rest)] = own
        self._found: dict[str, tuple[int, ...]] = {}

    def select(self, selector: Selector) -> tuple[int, ...]:
        """The places of the modules that any term selects, in order."""
        terms = selector.terms
        if len(terms) == 1:
            return self.places(terms[0])
        return tuple(sorted({place for term in terms for place in self.places(term)}))

    def places(self, term: AnyTerm) -> tuple[int, ...]:
        """The places of the modules that one term selects, in order."""
        found = self._found.get(term.text)
        if found is None:
            if len(self._found) == MOST_TERMS:
                self._found.clear()
            found = self._found[term.text] = self._search(term)
        return found

    def _search(self, term: AnyTerm) -> tuple[int, ...]:
        if isinstance(term, ModuleTerm):
            return tuple(m for m, entry in enumerate(self.modules) if term_matches(term, entry, self.layers))
        first, *rest = term.segments
        anywhere = RoleTerm(term.text, term.span, (Segment(first.names, ()), *rest))  # its blocks are looked up
        places: set[int] = set()
        for steps, blocks in self._alike.items():
            if path_matches(anywhere, steps, self.layers):
                for block in self._blocks(first, blocks):
                    places.update(blocks[block])
        return tuple(sorted(places))

    def _blocks(self, step: Segment, blocks: Collection[int | None]) -> Iterable[int | None]:
        """Those of the blocks that a term's first step names."""
        if not step.names:
            return blocks
        if not step.indices or None in blocks:
            return blocks if not step.indices and None in blocks else ()
        if any(part.low is None for part in step.indices):
            return blocks
        return {block for part in step.indices for block in index_range(part, self.layers) if block in blocks}
