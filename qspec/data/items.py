"""Texts and tasks as values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

Scoring = Literal["exact", "number", "choices"]
T = TypeVar("T")


@dataclass(frozen=True)
class TextData:
    """title: what was read, for people. documents: at least one, none of them blank. source: what answered in the
    place of the text that was named, such as "stand-in text"; empty where it is that text."""

    title: str
    path: Path
    documents: tuple[str, ...]
    source: str = ""


@dataclass(frozen=True)
class Choice:
    """One way to go on: the model rates `text` after `context`."""

    context: str
    text: str


@dataclass(frozen=True)
class TaskItem:
    """prompt and reference answer; for rated choices, the choices and the index of the right one."""

    prompt: str
    answer: str
    choices: tuple[Choice, ...] = ()
    right: int = 0


@dataclass(frozen=True)
class TaskData:
    """One task, ready to run.

    scorings: "exact" compares the generated text, stripped, with the answer; "number" the number after ####;
    "choices" rates the choices by likelihood. length, steps, block: the sampler's, for generated text. stop:
    generated text is cut where one of these begins. draws: Monte Carlo draws of each choice's likelihood. source: what
    answered in the place of the task that was named; empty where the items are that task's.
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


@dataclass(frozen=True)
class NotMeasured:
    """A task that the recipe asks for and that is not run; the report lists it with the reason."""

    name: str
    reason: str

    def __str__(self) -> str:
        return f"not measured: {self.name}: {self.reason}"


def spread(items: Sequence[T], limit: int | None) -> tuple[T, ...]:
    """`limit` items at even distances, so that all parts of an ordered file are met; without a limit all of them."""
    if limit is None or limit >= len(items):
        return tuple(items)
    return tuple(items[index * len(items) // limit] for index in range(limit))
