"""Texts and tasks as values."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from qspec.data.hub import Found
from qspec.files import sha256

T = TypeVar("T")
NOT_MEASURED = "not measured"


@dataclass(frozen=True)
class TextData:
    """title: what was read, for people. files: from which. documents: at least one, none of them blank. source: what
    answered in the place of the text that was named, such as "stand-in text"; empty where it is that text. revision: of
    a data set of the hub."""

    title: str
    files: tuple[Path, ...]
    documents: tuple[str, ...]
    source: str = ""
    revision: str = ""


@dataclass(frozen=True)
class Choice:
    """One way to go on: the model rates `text` after `context`."""

    context: str
    text: str


@dataclass(frozen=True)
class TaskItem:
    """prompt and reference answer; for rated choices, the choices and the index of the right one. id: the task and the
    item's place in it, the same whatever the limit."""

    prompt: str
    answer: str
    choices: tuple[Choice, ...] = ()
    right: int = 0
    id: str = ""


Scores = Mapping[str, float]  # of one item: metric -> 1 right, 0 wrong


@dataclass(frozen=True)
class Scoring:
    """How the answers to a task are scored.

    metric: the number that is reported. rated: an answer is log p of each of the item's choices; else it is the text
    that was written. score: every item's scores, `metric` among them, of the answers to all items.
    """

    metric: str
    rated: bool
    score: Callable[[Sequence[TaskItem], Sequence[Any]], list[Scores]]


def _same_text(items: Sequence[TaskItem], answers: Sequence[str]) -> list[Scores]:
    return [
        {"exact_match": float(text.strip() == item.answer.strip())} for item, text in zip(items, answers, strict=True)
    ]


def _likeliest(items: Sequence[TaskItem], answers: Sequence[Sequence[float]]) -> list[Scores]:
    return [
        {"choice_accuracy": float(list(rated).index(max(rated)) == item.right)}
        for item, rated in zip(items, answers, strict=True)
    ]


EXACT = Scoring("exact_match", False, _same_text)  # the stripped text is the stripped answer
CHOICES = Scoring("choice_accuracy", True, _likeliest)  # the likeliest choice, the first of equals, is the right one


@dataclass(frozen=True)
class TaskData:
    """One task, ready to run.

    length, steps, block: the sampler's, for generated text. stop: generated text is cut where one of these begins.
    draws: Monte Carlo draws of each choice's likelihood. runs_code: the score runs what the model wrote. source: what
    answered in the place of the task that was named; empty where the items are that task's. files, revision: what it
    was read from, and of which revision of a published data set.
    """

    name: str
    title: str
    scorings: tuple[Scoring, ...]
    items: tuple[TaskItem, ...]
    length: int
    steps: int
    block: int
    stop: tuple[str, ...] = ()
    draws: int = 128
    source: str = ""
    files: tuple[Path, ...] = ()
    revision: str = ""
    runs_code: bool = False


@dataclass(frozen=True)
class NotMeasured:
    """A task that the recipe asks for and that is not run; the report lists it with the reason."""

    name: str
    reason: str

    def __str__(self) -> str:
        return f"not measured: {self.name}: {self.reason}"


@dataclass(frozen=True)
class DataPin:
    """Exactly which data a name in a recipe stands for. use: calibration, nelbo or tasks. sha256: of the file, or of
    what `sha256sum` prints of several, by name; `NOT_MEASURED` for a task that is not run."""

    use: str
    name: str
    revision: str
    sha256: str

    @classmethod
    def of(cls, use: str, name: str, data: TextData | TaskData | NotMeasured | Found) -> DataPin:
        """Hashes the files that it was read from."""
        if isinstance(data, NotMeasured):
            return cls(use, name, "", NOT_MEASURED)
        hashes = [(path.name, sha256(path)) for path in data.files]
        if len(hashes) == 1:
            return cls(use, name, data.revision, hashes[0][1])
        listed = "".join(f"{digest}  {file}\n" for file, digest in sorted(hashes))
        return cls(use, name, data.revision, hashlib.sha256(listed.encode()).hexdigest())


def spread(items: Sequence[T], limit: int | None) -> tuple[T, ...]:
    """`limit` items at even distances, so that all parts of an ordered file are met; without a limit all of them."""
    if limit is None or limit >= len(items):
        return tuple(items)
    return tuple(items[index * len(items) // limit] for index in range(limit))
