"""The syntax tree of a recipe: what was written, with the span of every part and the comments around it.

Spans and comments' places do not count in comparisons, so `parse(format_source(x)) == parse(x)` says that
formatting changed nothing but looks. A `File` does compare its comments' texts: none may be lost.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, TypeAlias

from qspec.diagnostics import Span


@dataclass(frozen=True)
class Node:
    """Something written in a recipe, at `span`."""

    span: Span = field(compare=False, repr=False)


# --- values ---


@dataclass(frozen=True)
class Number(Node):
    """`0.01`; `text` is its spelling."""

    value: int | float
    text: str = field(compare=False)


@dataclass(frozen=True)
class Text(Node):
    """`"wikitext2"`, taken literally: a string has no escapes."""

    value: str


@dataclass(frozen=True)
class Word(Node):
    """`activation`, `true`, or the name of something."""

    name: str


@dataclass(frozen=True)
class Reference(Node):
    """`$bits`: the value of a param."""

    name: str


Literal_: TypeAlias = Number | Text | Word
Value: TypeAlias = Number | Text | Word | Reference


# --- selectors ---


@dataclass(frozen=True)
class Indices(Node):
    """`*` (low and high None), `3` (low = high) or `4..7`, both ends included; negative numbers count from
    the end."""

    low: int | None
    high: int | None

    def __str__(self) -> str:
        if self.low is None:
            return "*"
        return str(self.low) if self.low == self.high else f"{self.low}..{self.high}"


@dataclass(frozen=True)
class Segment(Node):
    """One step of a role: `blocks[0, 4..7]`, `q`, `{gate,up}`; no names at all is `*`."""

    names: tuple[Word, ...]
    indices: tuple[Indices, ...] = ()
    braces: bool = False

    @cached_property
    def words(self) -> frozenset[str]:
        """The names without their places."""
        return frozenset(word.name for word in self.names)

    def __str__(self) -> str:
        if not self.names:
            return "*"
        if self.braces:
            return "{" + ",".join(n.name for n in self.names) + "}"
        if self.indices:
            return f"{self.names[0].name}[{', '.join(map(str, self.indices))}]"
        return self.names[0].name


@dataclass(frozen=True)
class RoleTerm(Node):
    """`blocks[*].mlp.{gate,up}`."""

    segments: tuple[Segment, ...]

    def __str__(self) -> str:
        return ".".join(map(str, self.segments))


@dataclass(frozen=True)
class ModuleTerm(Node):
    """`module("regex")`: modules whose whole checkpoint name the pattern matches."""

    pattern: Text

    def __str__(self) -> str:
        return f'module("{self.pattern.value}")'


Term: TypeAlias = RoleTerm | ModuleTerm


@dataclass(frozen=True)
class SelectorNode(Node):
    """Terms separated by commas: what any of them selects."""

    terms: tuple[Term, ...]

    def __str__(self) -> str:
        return ", ".join(map(str, self.terms))


# --- statements on one line ---


@dataclass(frozen=True)
class Version(Node):
    """`qspec 1`."""

    number: Number


@dataclass(frozen=True)
class Extends(Node):
    """`extends "base.qs"`."""

    path: Text


@dataclass(frozen=True)
class Param(Node):
    """`param bits = 4 in 2..8`."""

    name: Word
    value: Literal_
    low: Number | None = None
    high: Number | None = None


@dataclass(frozen=True)
class Layers(Node):
    """`layers SELECTOR use SCHEME`, or `keep` (scheme None)."""

    selector: SelectorNode
    scheme: Word | None


@dataclass(frozen=True)
class Argument(Node):
    """`alpha = 0.6`."""

    name: Word
    value: Value


@dataclass(frozen=True)
class Apply(Node):
    """`apply PASS(arguments) on SELECTOR`."""

    name: Word
    arguments: tuple[Argument, ...]
    selector: SelectorNode


# --- settings in blocks ---


@dataclass(frozen=True)
class Setting(Node):
    """A keyword and its one value: `samples 128`, `shots 4`."""

    key: Word
    value: Value


@dataclass(frozen=True)
class Model(Node):
    """`model "id" revision "main"`."""

    key: Word
    id: Text | Reference
    revision: Text | Reference | None


@dataclass(frozen=True)
class FileSource(Node):
    """`file("x.jsonl", field = "text")`."""

    path: Text | Reference
    field_: Text | Reference | None


Words: TypeAlias = Text | Reference | FileSource


@dataclass(frozen=True)
class Rollouts(Node):
    """`rollouts(prompts = "wikitext2", steps = 64)`; prompts None where the default holds."""

    prompts: Words | None
    arguments: tuple[Argument, ...]


@dataclass(frozen=True)
class TextSetting(Node):
    """`text "wikitext2"`."""

    key: Word
    source: Words | Rollouts


@dataclass(frozen=True)
class Mask(Node):
    """`mask uniform(0.0, 1.0)`, `mask fixed(0.5)`, `mask none`."""

    key: Word
    kind: Literal["uniform", "grid", "fixed", "prefix", "none"]
    numbers: tuple[Number | Reference, ...]


@dataclass(frozen=True)
class Share(Node):
    """`masked 1.0`, `unmasked 0.5`, or `certainty`, which has no number."""

    key: Word
    number: Number | Reference | None


@dataclass(frozen=True)
class Weigh(Node):
    """`weigh masked 1.0, unmasked 0.5`."""

    key: Word
    shares: tuple[Share, ...]


@dataclass(frozen=True)
class FormatNode(Node):
    """`int4`, `int($bits)` or `$format`."""

    name: Word | Reference
    bits: Number | Reference | None


@dataclass(frozen=True)
class Grain(Node):
    """`tensor`, `channel`, `token`, `group 128` (number) or `block 128x128` (rows, columns)."""

    kind: Literal["tensor", "channel", "token", "group", "block"]
    size: Number | Reference | None = None
    rows: int = 0
    columns: int = 0


@dataclass(frozen=True)
class Operand(Node):
    """`weights int4 per channel symmetric clip mse`; `activations none` has no format."""

    key: Word
    format: FormatNode | None
    grain: Grain | None
    symmetry: Word | None
    clip: Value | None


@dataclass(frozen=True)
class Offer(Node):
    """`offer w4, w8, keep on blocks[*].*`; `keep` is a choice too."""

    choices: tuple[Word, ...]
    selector: SelectorNode


@dataclass(frozen=True)
class Amount(Node):
    """`4.25 bits`, `5 GiB` (both "stored"), `6 GiB memory`, `12 ms for block_decode` (regime)."""

    kind: Literal["stored", "memory", "time"]
    number: Number | Reference
    unit: Word
    regime: Word | None = None


@dataclass(frozen=True)
class BudgetSetting(Node):
    """`budget 4.25 bits, 5 GiB`."""

    key: Word
    amounts: tuple[Amount, ...]


@dataclass(frozen=True)
class LossSetting(Node):
    """`loss kl on "wikitext2"` (measure, source), or `loss task gsm8k` (task)."""

    key: Word
    measure: Word | None
    source: Words | None
    task: Word | None


@dataclass(frozen=True)
class Nelbo(Node):
    """`nelbo on "wikitext2" samples 64`."""

    key: Word
    source: Words
    samples: Number | Reference | None


@dataclass(frozen=True)
class Names(Node):
    """`family llada, dream`, `regime block_decode, full_sequence`, or `kernels triton for sm_90, sm_80` (subject:
    the back end)."""

    key: Word
    subject: Word | None
    names: tuple[Word, ...]


# --- the file ---


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
    """A statement with its comments."""

    node: Node
    comments: Comments = field(default=Comments(), compare=False)


@dataclass(frozen=True)
class Block(Node):
    """`KIND NAME { items }`; kind "task" stands inside `evaluate`, with or without braces."""

    kind: str
    head: Span = field(compare=False, repr=False)
    name: Word | None
    items: tuple[Item, ...]
    opening: str | None = field(default=None, compare=False)  # the comment after `{`
    closing: Comments = field(default=Comments(), compare=False)  # comments before `}`


@dataclass(frozen=True)
class File:
    """A whole recipe as written. comments: every comment's text, in order."""

    path: str = field(compare=False)
    items: tuple[Item, ...]
    comments: tuple[str, ...] = ()
    closing: Comments = field(default=Comments(), compare=False)
