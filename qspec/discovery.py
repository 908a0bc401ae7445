"""What a recipe can say, in words: what `qspec list` lists and `qspec explain` explains. No torch."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache

from qspec import passes, resources
from qspec.diagnostics import closest
from qspec.errors import UsageError
from qspec.formats import NUMBER_FORMATS, Granularity, TensorFormat
from qspec.language.explanations import explanations
from qspec.language.fields import settings
from qspec.language.presets import PRESETS
from qspec.language.reference import statements, takes
from qspec.language.spec import BLOCK_CLASSES, Pass, TaskRequest
from qspec.models.family import DecoderShape, Family
from qspec.models.known import known_models
from qspec.models.registry import FAMILIES, family_of

WIDTH = 4096  # of the layer that a format is shown at
_SECTIONS = {"param": "## Params", "extends": "## Bases", "qspec": "## Versions"}  # not below their statement's name
_COMMENT = re.compile(r"^<!-- .* -->\n", re.MULTILINE)


@dataclass(frozen=True)
class Entry:
    """Something that has a name, and one line about it."""

    name: str
    about: str


def _passes() -> Iterator[Entry]:
    for name, cls in passes.available().items():
        yield Entry(name, _first_line(cls))


def _formats() -> Iterator[Entry]:
    for name, number in NUMBER_FORMATS.items():
        yield Entry(name, number.about)


def _families() -> Iterator[Entry]:
    for name in FAMILIES:
        known = [model for model, (family, _) in _models_known().items() if family.name == name]
        standin = resources.standin(name)
        yield Entry(name, f"{', '.join(known)}{f'; stand-in {standin.name}' if standin.is_dir() else ''}")


def _models() -> Iterator[Entry]:
    for name, (family, shape) in _models_known().items():
        yield Entry(name, f"{family.name}, {shape.layers} blocks of width {shape.width}; its config ships, for plans")
    for name in FAMILIES:
        if resources.standin(name).is_dir():
            yield Entry(resources.standin(name).name, f"{name}, a small stand-in that ships, to try recipes on")


def _tasks() -> Iterator[Entry]:
    for name, preset in PRESETS.items():
        shots = f"{preset.title}, {preset.shots} shots"
        sizes = f"answers of {preset.length} tokens in {preset.steps} steps, blocks of {preset.block}"
        yield Entry(name, f"{shots}, {'choices rated by likelihood' if preset.rated else sizes}")


def _recipes() -> Iterator[Entry]:
    folder = resources.recipes()
    for path in sorted(folder.rglob("*.qs")):
        text = path.read_text(encoding="utf-8")
        comment = re.search(r"^# ?(.*(?:\n#.*)*)", text, re.MULTILINE)
        about = " ".join(line.lstrip("# ") for line in comment[1].split("\n")) if comment else ""
        yield Entry(str(path.relative_to(folder.parent)), about.partition(". ")[0])


KINDS: Mapping[str, Callable[[], Iterator[Entry]]] = {
    "passes": _passes,
    "formats": _formats,
    "families": _families,
    "tasks": _tasks,
    "recipes": _recipes,
    "models": _models,
}


def _first_line(cls: type) -> str:
    return (cls.__doc__ or "").strip().partition("\n")[0]


@cache
def _models_known() -> dict[str, tuple[Family, DecoderShape]]:
    found = {name: (family_of(config), config) for name, config in known_models().items()}
    return {name: (family, family.shape(config)) for name, (family, config) in found.items()}


# --- explain ---


def explain(word: str) -> str:
    """What a diagnostic's code, a statement, pass, format, task or setting means; all of them where several have the
    name. Raises UsageError where none has."""
    found = [text for text in (find(word) for find in _EXPLAINERS) if text]
    if found:
        return "\n\n".join(found)
    names = [*explanations(), *statements(), *passes.available(), *NUMBER_FORMATS, *PRESETS, *_settings()]
    guess = closest(word, names)
    hint = f"did you mean {guess}?" if guess else "qspec explain lists all codes, qspec list what else has a name"
    raise UsageError(f"there is nothing called {word!r} to explain", hint=hint)


def _code(word: str) -> str | None:
    known = explanations().get(word.upper())
    return known.render() if known else None


def _statement(word: str) -> str | None:
    """Its section of the language's page."""
    if word not in statements():
        return None
    page = _COMMENT.sub("", (resources.grammar() / "reference.md").read_text(encoding="utf-8"))
    head = _SECTIONS.get(word, f"### {word}")
    section = re.search(rf"^{head}\b.*?(?=^##|\Z)", page, re.MULTILINE | re.DOTALL)
    body = section[0].partition("\n")[2].strip() if section else ""
    return f"{word}: {statements()[word]}\n\n{body}"


def _pass(word: str) -> str | None:
    cls = passes.available().get(word)
    if cls is None:
        return None
    lines = [f"{word}: {_first_line(cls)}", ""]
    lines += [f"  {one.key}: {one.doc}: {takes(one)}" for one in settings(cls).values()] or ["It has no parameters."]
    lines += ["", *_contract(cls), f"In a recipe: apply {word}(...) on blocks[*].*"]
    return "\n".join(lines)


def _contract(cls: type[Pass]) -> Iterator[str]:
    for words, facts in (("Needs", cls.requires), ("Establishes", cls.establishes), ("Ends", cls.clears)):
        if facts:
            yield f"{words}: {', '.join(sorted(fact.replace('_', ' ') for fact in facts))}."


def _format(word: str) -> str | None:
    number = NUMBER_FORMATS.get(word)
    if number is None:
        return None
    symmetric = number.kind != "uint"
    channel, group = Granularity("channel"), Granularity("group", number.block or 128)
    sizes = [group] if number.block else [channel] if number.kind == "float" else [channel, group]
    bits = [f"{TensorFormat(number, one, symmetric).stored_bits(WIDTH, WIDTH) / WIDTH**2:.4g} {one}" for one in sizes]
    return "\n".join(
        [
            f"{word}: {number.about}.",
            "",
            f"Bits per weight of a {WIDTH} x {WIDTH} layer, scales and zero points counted: {', '.join(bits)}.",
            f"In a scheme: weights {word} {sizes[0]}",
        ]
    )


def _task(word: str) -> str | None:
    preset = PRESETS.get(word)
    if preset is None:
        return None
    about = next(one.about for one in _tasks() if one.name == word)
    lines = [f"{word}: {about}.", "", f"In lm-eval: {preset.task}, {preset.metric}."]
    lines += [f"In a recipe, in the block evaluate: task {word} {{ SETTINGS }}", ""]
    return "\n".join(lines + [f"  {one.key}: {one.doc}: {takes(one)}" for one in settings(TaskRequest).values()])


def _settings() -> dict[str, list[str]]:
    """Keyword -> a line for every block that has it."""
    found: dict[str, list[str]] = {}
    for block, cls in BLOCK_CLASSES.items():
        for one in settings(cls).values():
            found.setdefault(one.key, []).append(f"{one.key}, in {block}: {one.doc}: {takes(one)}")
    return found


def _setting(word: str) -> str | None:
    return "\n".join(_settings().get(word, ())) or None


_EXPLAINERS = (_code, _statement, _pass, _format, _task, _setting)
