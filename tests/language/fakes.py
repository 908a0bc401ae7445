"""Passes with the contracts of the real ones and none of their mathematics: goldens do not change when a
pass does."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from annotated_types import Ge, Gt, Le, Lt

from qspec.diagnostics import RecipeError, Source
from qspec.formats import Scheme
from qspec.language import LoadedRecipe, load_source
from qspec.language.spec import Fact, Pass
from qspec.models.family import ModuleEntry
from qspec.models.registry import FAMILIES

_FLOAT = frozenset({Fact.FLOAT_WEIGHTS})
_PLAIN = frozenset({Fact.FLOAT_WEIGHTS, Fact.PLAIN_INPUT, Fact.OPEN_RANGE})


@dataclass(frozen=True)
class Rtn(Pass):
    requires: ClassVar[frozenset[Fact]] = _FLOAT
    establishes: ClassVar[frozenset[Fact]] = frozenset({Fact.CODES})
    clears: ClassVar[frozenset[Fact]] = _FLOAT
    quantizes: ClassVar[bool] = True


@dataclass(frozen=True)
class Gptq(Rtn):
    damp: Annotated[float, Gt(0), Lt(1)] = 0.01
    order: Literal["activation", "natural"] = "activation"
    block: Annotated[int, Ge(1), Le(4096)] = 128


@dataclass(frozen=True)
class Smooth(Pass):
    alpha: Annotated[float, Ge(0), Le(1)] | Literal["search"] = 0.5
    requires: ClassVar[frozenset[Fact]] = _PLAIN


@dataclass(frozen=True)
class Clip(Pass):
    grid: Annotated[int, Ge(2), Le(1000)] = 20
    shrink: Annotated[float, Gt(0), Lt(1)] = 0.5
    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.FLOAT_WEIGHTS, Fact.OPEN_RANGE})
    clears: ClassVar[frozenset[Fact]] = frozenset({Fact.OPEN_RANGE})


@dataclass(frozen=True)
class Awq(Pass):
    clip: bool = True
    tokens: Annotated[int, Ge(1), Le(1 << 24)] = 8192
    requires: ClassVar[frozenset[Fact]] = _PLAIN
    clears: ClassVar[frozenset[Fact]] = frozenset({Fact.OPEN_RANGE})

    def ends(self) -> frozenset[Fact]:
        return self.clears if self.clip else frozenset()


@dataclass(frozen=True)
class Rotate(Pass):
    block: Annotated[int, Ge(16), Le(1024)] = 128
    steps: Annotated[int, Ge(1), Le(4096)] = 256
    requires: ClassVar[frozenset[Fact]] = _PLAIN
    clears: ClassVar[frozenset[Fact]] = frozenset({Fact.PLAIN_INPUT})

    def rotations(self, entry: ModuleEntry, scheme: Scheme) -> tuple[int, ...]:
        return (self.block, self.block)


@dataclass(frozen=True)
class Quarot(Pass):
    residual: bool = True
    heads: Literal["within", "across", "none"] = "within"
    online: bool = True
    requires: ClassVar[frozenset[Fact]] = _PLAIN
    clears: ClassVar[frozenset[Fact]] = frozenset({Fact.PLAIN_INPUT})

    @property
    def whole_model(self) -> bool:
        return self.residual


PASSES: dict[str, type[Pass]] = {
    "awq": Awq, "clip": Clip, "gptq": Gptq, "quarot": Quarot, "rotate_duquant": Rotate, "rtn": Rtn, "smooth": Smooth,
}  # fmt: skip

HEAD = 'qspec 1\n\nrecipe r {\n  family llada\n  model  "GSAI-ML/LLaDA-8B-Instruct"\n}\n'
SCHEME = """
scheme w8a8 {
  weights     int8 per channel symmetric
  activations int8 per token   symmetric
}
"""
RULES = "\nlayers blocks[*].* use w8a8\n"
APPLY = "\napply rtn() on blocks[*].*\n"


def recipe(more: str = "", *, head: str = HEAD, scheme: str = SCHEME, rules: str = RULES, apply: str = APPLY) -> str:
    """A small good recipe, with parts replaced."""
    return head + scheme + rules + apply + more


def load(text: str, settings: dict[str, str] | None = None, path: str = "r.qs") -> LoadedRecipe:
    return load_source(Source(path, text), PASSES, settings or {}, FAMILIES)


def codes(text: str, settings: dict[str, str] | None = None) -> list[str]:
    """The codes of all diagnostics, errors and warnings, in the order of the text."""
    try:
        return [d.code for d in load(text, settings).warnings]
    except RecipeError as error:
        return [d.code for d in error.diagnostics]


ROOT = Path(__file__).resolve().parent.parent.parent
