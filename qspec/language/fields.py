"""The fields of the spec's classes, which say all about a setting: keyword, type, bounds, default, words about it.

Recipes are read by them (`convert`), written (`qspec.language.printer`), completed and explained
(`qspec.language.reference`); pydantic makes the JSON schema of the same classes.
"""

from __future__ import annotations

import types
from collections.abc import Collection, Iterator, Mapping
from dataclasses import MISSING, dataclass, fields
from functools import cache
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from pydantic import Field, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from qspec.diagnostics import closest, listed, quote
from qspec.language.syntax import Leaf


@dataclass(frozen=True)
class Key:
    """In a field's annotation: the keyword of its setting, if that is not its name; "" if it has none of its own."""

    word: str


@dataclass(frozen=True)
class Known:
    """In a field's annotation: the names that it takes. kind: what they name; code: of the error."""

    kind: str
    code: str
    names: Collection[str]
    plural: str | None = None


@dataclass(frozen=True)
class Form:
    """In a field's annotation: how its values are written, where that is not its type's form."""

    text: str


class Quoted:
    """In a field's annotation: a string, which is not empty and not a bare word."""


def about(doc: str) -> Any:
    """In a field's annotation: what it is for."""
    return Field(description=doc)


def between(least: float, most: float | None = None, doc: str | None = None) -> Any:
    """In a number's annotation: its bounds, which belong to it, and what it is for."""
    return Field(ge=least, le=most, description=doc)


@dataclass(frozen=True)
class Setting:
    """A field that a recipe sets."""

    key: str
    field: str
    hint: Any
    default: Any  # MISSING where there is none
    doc: str

    @property
    def form(self) -> str:
        """What is written after its keyword."""
        return form(self.hint)


@dataclass(frozen=True)
class Refusal(Exception):  # noqa: N818 - carries an answer, not a failure
    """Why a value does not fit: the end of a sentence, the next step, the word that was meant, wrong type
    or range."""

    why: str
    hint: str
    guess: str | None = None
    kind: Literal["type", "range"] = "type"


def settings(cls: type) -> Mapping[str, Setting]:
    """Keyword -> setting, in order."""
    return _settings(cls)


@cache
def _settings(cls: type) -> Mapping[str, Setting]:
    hints = get_type_hints(cls, include_extras=True)
    found = {}
    for f in fields(cls):
        hint = hints[f.name]
        info = next((m for m in metadata(hint) if isinstance(m, FieldInfo)), None)
        key = next((m.word for m in metadata(hint) if isinstance(m, Key)), f.name)
        if key:
            found[key] = Setting(key, f.name, hint, f.default, (info.description if info else None) or "")
    return found


def required(cls: type) -> list[str]:
    """The settings without a default."""
    return [key for key, setting in settings(cls).items() if setting.default is MISSING]


def members(hint: Any) -> Iterator[Any]:
    """The types that an annotation admits, without what describes them."""
    if get_origin(hint) is Annotated:
        yield from members(get_args(hint)[0])
    elif get_origin(hint) in (Union, types.UnionType):
        for one in get_args(hint):
            yield from members(one)
    elif hint is not type(None):
        yield hint


def metadata(hint: Any) -> tuple[Any, ...]:
    return get_args(hint)[1:] if get_origin(hint) is Annotated else ()


@cache
def words(hint: Any) -> tuple[str, ...]:
    """The words that an annotation admits: those of a Literal, or true and false."""
    found: list[str] = []
    for one in members(hint):
        found += [str(word) for word in get_args(one)] if get_origin(one) is Literal else []
        found += ["true", "false"] if one is bool else []
    return tuple(found)


def form(hint: Any) -> str:
    """How a value is written, in general."""
    types_ = list(members(hint))
    forms = [one.text for one in metadata(hint) if isinstance(one, Form)]
    forms = forms or [str(one.form) for one in types_ if hasattr(one, "form")] or list(words(hint))
    if forms:
        return f"{', '.join(forms[:-1])} or {forms[-1]}" if len(forms) > 1 else forms[0]
    return '"STRING"' if str in types_ else "NUMBER"


@cache
def _adapter(hint: Any) -> TypeAdapter[Any]:
    return TypeAdapter(hint)


def convert(hint: Any, leaf: Leaf) -> Any:
    """The value of a word for an annotation, references looked up; raises Refusal where type or bounds do not fit."""
    choices = words(hint)
    if choices:
        numbers = [one for one in members(hint) if one in (int, float)]
        if leaf.kind != "NUMBER" or not numbers:
            return _choice(choices, leaf, "a number or " if numbers else "")
    if any(isinstance(m, Quoted) for m in metadata(hint)):
        return _quoted(leaf)
    try:
        return _adapter(hint).validate_python(leaf.value, strict=True)
    except ValidationError as error:
        raise _refusal(error, leaf) from None


def _choice(choices: tuple[str, ...], leaf: Leaf, also: str) -> Any:
    if leaf.kind == "NAME" and leaf.text in choices:
        return {"true": True, "false": False}.get(leaf.text, leaf.text)
    guess = closest(leaf.text, choices) if leaf.kind == "NAME" else None
    why = f"is not {also}{listed(choices)}"
    raise Refusal(why, f"did you mean `{guess}`?" if guess else f"write {also}{listed(choices)}", guess)


def _quoted(leaf: Leaf) -> str:
    if leaf.kind != "STRING":
        raise Refusal("is not a string", "write it in quotes")
    if not str(leaf.value).strip():
        raise Refusal("is an empty string", "write what it is to be", kind="range")
    return str(leaf.value)


_WRONG_TYPES = {
    "int_type": ("is not a whole number", "write a whole number, such as 128"),
    "float_type": ("is not a number", "write a number, such as 0.5"),
}
_BOUNDS = {
    "greater_than_equal": ("at least", "ge"),
    "greater_than": ("more than", "gt"),
    "less_than_equal": ("at most", "le"),
    "less_than": ("less than", "lt"),
    "multiple_of": ("a multiple of", "multiple_of"),
}


def _refusal(error: ValidationError, leaf: Leaf) -> Refusal:
    """What pydantic says, as a recipe's author would."""
    found = error.errors(include_url=False)
    bound = next((one for one in found if one["type"] in _BOUNDS), None)
    if bound is not None:
        which, name = _BOUNDS[bound["type"]]
        limit = f"{which} {_plain(bound['ctx'][name])}"
        return Refusal(f"is out of range; it must be {limit}", f"write a value {limit}", kind="range")
    kind = found[0]["type"]
    if kind == "string_type":
        return Refusal("is not a string", f'write "{leaf.text}"')
    return Refusal(*_WRONG_TYPES.get(kind, ("cannot be written in a recipe", "leave it out")))


def _plain(number: float) -> str:
    return str(int(number)) if float(number).is_integer() else str(number)


def shown(leaf: Leaf) -> str:
    """A value as the recipe has it, quoted for a message."""
    return quote(leaf.text)
