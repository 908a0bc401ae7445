"""Written values -> Python values, checked against a dataclass field's type and `annotated_types`
constraints."""

from __future__ import annotations

import types
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from functools import cache
from typing import Annotated, Any, Literal, TypeAlias, Union, get_args, get_origin, get_type_hints

from annotated_types import Ge, Gt, Interval, Le, Lt, MultipleOf

from qspec.diagnostics import closest, listed, quote
from qspec.language.syntax import Number, Text, Word

Plain: TypeAlias = Number | Text | Word  # a value after its `$param` was looked up


@dataclass(frozen=True)
class Refusal(Exception):  # noqa: N818 - carries an answer, not a failure
    """Why a value does not fit: the end of a sentence, the next step, the word that was meant, wrong type
    or range."""

    why: str
    hint: str
    guess: str | None = None
    kind: Literal["type", "range"] = "type"


@cache
def hints(cls: type) -> Mapping[str, Any]:
    """Field name -> type with its constraints."""
    return get_type_hints(cls, include_extras=True)


def names(cls: type) -> tuple[str, ...]:
    """The fields that a recipe can set."""
    return tuple(f.name for f in fields(cls) if f.init)


def required(cls: type) -> tuple[str, ...]:
    """The fields without a default."""
    return tuple(f.name for f in fields(cls) if f.default is MISSING and f.default_factory is MISSING)


def convert(cls: type, name: str, value: Plain) -> Any:
    """The value for the field `name` of `cls`; raises Refusal where type or range do not fit."""
    return _convert(hints(cls)[name], value)


def _convert(hint: Any, value: Plain) -> Any:
    hint, constraints = _open(hint)
    plain = _typed(hint, value)
    for constraint in constraints:
        _hold(constraint, plain)
    return plain


def _open(hint: Any) -> tuple[Any, tuple[Any, ...]]:
    """Strips Annotated and `| None`; a number or a word stays a union."""
    constraints: tuple[Any, ...] = ()
    while True:
        origin = get_origin(hint)
        if origin is Annotated:
            hint, *found = get_args(hint)
            constraints += tuple(found)
        elif origin in (Union, types.UnionType):
            members = [a for a in get_args(hint) if a is not type(None)]
            if len(members) > 1:
                return hint, constraints
            (hint,) = members
        else:
            return hint, constraints


def _typed(hint: Any, value: Plain) -> Any:
    if get_origin(hint) in (Union, types.UnionType):
        (words,) = [a for a in get_args(hint) if get_origin(a) is Literal]
        (number,) = [a for a in get_args(hint) if a is not words]
        if isinstance(value, Word):
            return _choice([str(c) for c in get_args(words)], value, "a number or ")
        return _convert(number, value)
    if get_origin(hint) is Literal:
        return _choice([str(c) for c in get_args(hint)], value)
    if hint is bool:
        return _choice(["true", "false"], value) == "true"
    if hint is int:
        if isinstance(value, Number) and float(value.value).is_integer() and isinstance(value.value, int):
            return value.value
        raise Refusal("is not a whole number", "write a whole number, such as 128")
    if hint is float:
        if isinstance(value, Number):
            return float(value.value)
        raise Refusal("is not a number", "write a number, such as 0.5")
    if hint is str:
        if isinstance(value, Number):
            raise Refusal("is not a string", f'write "{value.text}"')
        return value.value if isinstance(value, Text) else value.name
    raise Refusal("cannot be written in a recipe", "leave it out")


def _choice(choices: list[str], value: Plain, also: str = "") -> str:
    if isinstance(value, Word) and value.name in choices:
        return value.name
    guess = closest(value.name, choices) if isinstance(value, Word) else None
    raise Refusal(
        f"is not {also}{listed(choices)}",
        f"did you mean `{guess}`?" if guess else f"write {also}{listed(choices)}",
        guess,
    )


def _hold(constraint: Any, value: Any) -> None:
    """Raises Refusal where the constraint does not hold; constraints that say nothing about numbers are
    passed by."""
    if isinstance(constraint, Interval):
        for part in constraint:
            _hold(part, value)
    for holds, what in _statements(constraint, value):
        if not holds:
            raise Refusal(f"is out of range; it must be {what}", f"write a value {what}", kind="range")


def _statements(constraint: Any, value: Any) -> list[tuple[bool, str]]:
    match constraint:
        case Ge():
            return [(value >= constraint.ge, f"at least {constraint.ge}")]
        case Gt():
            return [(value > constraint.gt, f"more than {constraint.gt}")]
        case Le():
            return [(value <= constraint.le, f"at most {constraint.le}")]
        case Lt():
            return [(value < constraint.lt, f"less than {constraint.lt}")]
        case MultipleOf():
            return [(value % constraint.multiple_of == 0, f"a multiple of {constraint.multiple_of}")]
    return []


def shown(value: Plain) -> str:
    """A value as the recipe has it, quoted for a message."""
    match value:
        case Number():
            return quote(value.text)
        case Text():
            return quote(f'"{value.value}"')
    return quote(value.name)
