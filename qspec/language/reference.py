"""What an author can write, from the spec's classes: the tables of grammar/reference.md, and words about a setting."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING
from functools import cache
from typing import Any

from pydantic import TypeAdapter

from qspec import resources
from qspec.formats import NUMBER_FORMATS
from qspec.language.fields import Form, Known, Setting, metadata, settings, words
from qspec.language.presets import PRESETS, Preset
from qspec.language.printer import written
from qspec.language.spec import BLOCK_CLASSES, REGIMES, TEXTS, Pass, Rollouts

_PART = re.compile(r"(<!-- ([a-z ]+) -->\n).*?(<!-- end -->)", re.DOTALL)
_STATEMENT = re.compile(r"^\| `(\w+)[^|]* \| (.*) \|$", re.MULTILINE)


@cache
def statements() -> Mapping[str, str]:
    """Statement -> what it says, from the page's table."""
    page = (resources.grammar() / "reference.md").read_text(encoding="utf-8")
    section = page.partition("\n## Statements\n")[2].partition("\n### ")[0]
    return {m[1]: m[2] for m in _STATEMENT.finditer(section)}


def filled(page: str, passes: Mapping[str, type[Pass]]) -> str:
    """The page with everything between `<!-- WHAT -->` and `<!-- end -->` written anew: `settings of BLOCK`, `passes`,
    `formats`, `tasks`, `texts`, `regimes`, `grammar`."""
    return _PART.sub(lambda m: f"{m[1]}{_part(m[2], passes)}\n{m[3]}", page)


def _part(what: str, passes: Mapping[str, type[Pass]]) -> str:
    kind, _, name = what.partition(" of ")
    match kind:
        case "settings":
            return table(Rollouts if name == "rollouts" else BLOCK_CLASSES[name])
        case "passes":
            return _passes_table(passes)
        case "formats":
            return _rows(("format", "codes"), [(one.name, one.about) for one in NUMBER_FORMATS.values()])
        case "tasks":
            head = ("task", "in lm-eval, number reported", "shots", "length, steps, block", "draws")
            return _rows(head, [(name, *_preset(one)) for name, one in PRESETS.items()])
        case "texts":
            return ", ".join(f"`{one}`" for one in TEXTS)
        case "regimes":
            sizes = [(name, f"{low} … {high}") for name, (low, high) in REGIMES.items()]
            return _rows(("regime", "tokens in a forward pass"), sizes)
        case "grammar":
            return f"```\n{_grammar()}\n```"
    raise ValueError(f"the page asks for {what!r}, which is not known")


def _preset(task: Preset) -> tuple[str, str, str, str]:
    sizes = ("", str(task.draws)) if task.rated else (f"{task.length}, {task.steps}, {task.block}", "")
    return (f"`{task.task}`, `{task.metric}`", str(task.shots), *sizes)


def _rows(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table whose first column is code."""
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    return "\n".join([*lines, *(f"| `{first}` | {' | '.join(others)} |" for first, *others in rows)])


def _grammar() -> str:
    """The grammar as it is, without comments, and without what only the parser's trees are about."""
    text = (resources.grammar() / "qspec.lark").read_text(encoding="utf-8")
    text = re.sub(r"^(//|%|COMMENT|WHITESPACE).*\n", "", text, flags=re.MULTILINE)
    text = re.sub(r" *-> \w+|(?<=[A-Z])\.\d+(?=:)|^\?", "", text, flags=re.MULTILINE)
    return re.sub(r"\n{3,}", "\n\n", text).strip().replace("_statement", "statement")


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


def takes(setting: Setting) -> str:
    """The values that a setting takes, and its default, in one line."""
    default = "" if setting.default in (MISSING, None, ()) else f"default {written(setting.default)}"
    return "; ".join(part for part in (", ".join(_takes(setting)) or setting.form, default) if part)


def _takes(setting: Setting) -> list[str]:
    known = [name for one in metadata(setting.hint) if isinstance(one, Known) for name in one.names]
    spelled = any(isinstance(one, Form) for one in metadata(setting.hint))
    return [*_bounds(setting.hint), *(known or ([] if spelled else words(setting.hint)))]


def _says(setting: Setting) -> str:
    """What a setting is for, and what it takes."""
    found = [text if " " in text else f"`{text}`" for text in _takes(setting)]
    return f"{setting.doc}: {', '.join(found)}" if found else setting.doc


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
