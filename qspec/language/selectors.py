"""Role selectors: `blocks[0, 4..7, -1].{attention,mlp}.*`, `head`, `module("regex")`."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from qspec.language.parser import parse_selector
from qspec.language.patterns import compiled, problem
from qspec.language.syntax import Indices, ModuleTerm, RoleTerm, Segment, SelectorNode, Term
from qspec.models.family import ModuleEntry, Path


@dataclass(frozen=True)
class Selector:
    """What a rule or a pass is about; `text` is the canonical spelling. Two selectors are equal if they
    read equal.

    Names only what can be quantized: linears, the embedding and the head.
    """

    text: str

    @classmethod
    def of(cls, node: SelectorNode) -> Selector:
        """From the syntax tree, keeping its spans."""
        selector = cls(str(node))
        vars(selector)["terms"] = node.terms
        return selector

    @cached_property
    def terms(self) -> tuple[Term, ...]:
        """The parts between commas. Raises ValueError where the text is not a selector."""
        terms = parse_selector(self.text).terms
        for term in terms:
            wrong = problem(term.pattern.value) if isinstance(term, ModuleTerm) else None
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


def term_matches(term: Term, entry: ModuleEntry, layers: int) -> bool:
    """Whether one term selects the module, by any of its names; a `*` at the end takes everything below."""
    return any(name_matches(term, name, layers) for name in entry.names)


def name_matches(term: Term, name: ModuleEntry, layers: int) -> bool:
    """Whether the term selects the module by this one of its names."""
    if isinstance(term, ModuleTerm):
        return compiled(term.pattern.value).fullmatch(name.module)
    return path_matches(term, name.role.path, layers)


def path_matches(term: RoleTerm, path: Path, layers: int) -> bool:
    """Whether the term's steps fit the path."""
    steps = term.segments
    if len(path) < len(steps) or (len(path) > len(steps) and steps[-1].names):
        return False
    return all(step_matches(step, name, index, layers) for step, (name, index) in zip(steps, path, strict=False))


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
