"""What an author can write, from the spec's classes: the tables of grammar/reference.md, and completion."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import MISSING, dataclass
from typing import Any

from pydantic import TypeAdapter

from qspec.diagnostics import Source
from qspec.language import grammar
from qspec.language.fields import Form, Known, Setting, metadata, settings, words
from qspec.language.pieces import BLOCK_KINDS, LINE_KINDS, Braces, Piece, cut
from qspec.language.printer import written
from qspec.language.spec import BLOCK_CLASSES, Pass

_TABLE = re.compile(r"(<!-- settings of (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
_PASSES = re.compile(r"(<!-- passes -->\n).*?(<!-- end -->)", re.DOTALL)
_PASS = re.compile(r"\bapply\s+(\w+)\s*\([^()]*$")


@dataclass(frozen=True)
class Completion:
    """A word that may come next, and what it is for."""

    word: str
    doc: str


def filled(page: str, passes: Mapping[str, type[Pass]]) -> str:
    """The page with the tables of `<!-- settings of BLOCK -->` and `<!-- passes -->` written anew."""
    page = _TABLE.sub(lambda m: f"{m[1]}{table(BLOCK_CLASSES[m[2]])}\n{m[3]}", page)
    return _PASSES.sub(lambda m: f"{m[1]}{_passes_table(passes)}\n{m[2]}", page)


def _passes_table(passes: Mapping[str, type[Pass]]) -> str:
    rows = ["| pass | what it does; its parameters | default |", "|---|---|---|"]
    for name, cls in passes.items():
        rows.append(f"| `{name}` | {cls.__doc__} | |")
        rows += [f"| | `{one.key}`: {_says(one)} | {_default(one)} |" for one in settings(cls).values()]
    return "\n".join(rows)


def table(cls: Any) -> str:
    """The settings of a block as a Markdown table."""
    rows = [f"| `{one.key}` | {_says(one)} | {_default(one)} |" for one in settings(cls).values()]
    return "\n".join(["| setting | value | default |", "|---|---|---|", *rows])


def _says(setting: Setting) -> str:
    """What a setting is for, and what it takes."""
    known = [name for one in metadata(setting.hint) if isinstance(one, Known) for name in one.names]
    spelled = any(isinstance(one, Form) for one in metadata(setting.hint))
    takes = [*_bounds(setting.hint), *(f"`{word}`" for word in known or ([] if spelled else words(setting.hint)))]
    return f"{setting.doc}: {', '.join(takes)}" if takes else setting.doc


def _bounds(hint: Any) -> list[str]:
    """The least and the largest number that an annotation admits."""
    schema = TypeAdapter(hint).json_schema()
    numbers = {**schema, **{key: value for one in schema.get("anyOf", []) for key, value in one.items()}}
    if {"minimum", "maximum"} <= numbers.keys():
        return [f"{numbers['minimum']} … {numbers['maximum']}"]
    forms = {"exclusiveMinimum": "above {}", "exclusiveMaximum": "below {}", "minimum": "{} or more"}
    return [form.format(numbers[key]) for key, form in forms.items() if key in numbers]


def _default(setting: Setting) -> str:
    if setting.default is MISSING:
        return "required"
    return f"`{written(setting.default)}`" if setting.default not in (None, ()) else ""


# --- completion ---


def completions(source: Source, offset: int, passes: Mapping[str, type[Pass]]) -> list[Completion]:
    """The words that may stand at an offset: statements, settings, keywords, passes and their parameters.

    The recipe's own names are not among them; nothing is where the text before makes no sense.
    """
    text = re.sub(r"\w*$", "", source.text[:offset])  # a word begun is to be completed
    block, code = _place(Source(source.path, text))
    if called := _PASS.search(code):
        return _settings(passes[called[1]]) if called[1] in passes else []
    if not code.strip() and block is None:
        return [Completion(word, "") for word in (*LINE_KINDS, *BLOCK_KINDS)]
    if re.fullmatch(r"apply\s+", code):
        return [Completion(name, (cls.__doc__ or "").partition("\n")[0]) for name, cls in passes.items()]
    if block is None:
        start = LINE_KINDS.get(code.split()[0])
        return [Completion(word, "") for word in _expected(start, code)] if start else []
    known = settings(BLOCK_CLASSES[block])
    found = _expected(f"{block}_body", code)
    last = known.get(code.split()[-1]) if code.strip() else None
    if last and not found:  # a word that the grammar takes as a name
        return [Completion(word, "") for word in words(last.hint)]
    return [Completion(word, known[word].doc if word in known else "") for word in found]


def _settings(cls: type) -> list[Completion]:
    return [Completion(key, one.doc) for key, one in settings(cls).items()]


def _place(source: Source) -> tuple[str | None, str]:
    """The block that a text ends in, and the code of the statement that it ends in."""
    items, block = cut(source).items, None
    while items and isinstance(items[-1], Braces) and items[-1].close == len(source.text):
        block, items = items[-1].word.split(maxsplit=1)[0], items[-1].items
    last = items[-1] if items and source.text.rpartition("\n")[2].strip() else None
    return block, source.text[last.start :] if isinstance(last, Piece) else ""


def _expected(start: str, code: str) -> list[str]:
    """The keywords that may follow a code."""
    try:
        grammar.parse(start, f"{code}\0")  # no recipe holds this character
    except grammar.Mismatch as mismatch:
        found = [name.strip("`") for name in mismatch.names if mismatch.start == len(code)]
        return [word for word in found if word.isidentifier()]
    return []
