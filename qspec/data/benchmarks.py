"""The benchmarks by name: where their files lie below a data folder, and how prompts are written. No torch.

Prompts are in the wording of the common harness (lm-eval); scores are meant to be compared with the unquantized model's
under the same prompts, not with published tables.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from qspec.data.files import Row, index_field, list_field, read_lines, read_rows, text_field
from qspec.data.items import Choice, TaskData, TaskItem, spread
from qspec.errors import InputError
from qspec.language.spec import TaskRequest

RUNS_CODE = ("humaneval", "mbpp")  # scored by running what the model wrote


def gsm8k(folder: Path, request: TaskRequest) -> TaskData:
    """Grade-school arithmetic in words; shots from the training set."""
    home = folder / "gsm8k"
    shown = [
        f"{_gsm8k_prompt(row, path, line)} {text_field(row, 'answer', path, line)}\n\n"
        for path, line, row in _first(home / "train.jsonl", request.shots)
    ]
    path = home / "test.jsonl"
    items = [
        TaskItem("".join(shown) + _gsm8k_prompt(row, path, line), text_field(row, "answer", path, line))
        for line, row in read_rows(path)
    ]
    files = [file for file in (home / "train.jsonl", path) if file.is_file()]
    return _task(request, "GSM8K", "number", items, files, stop=("Question:",))


def _gsm8k_prompt(row: Row, path: Path, line: int) -> str:
    return f"Question: {text_field(row, 'question', path, line)}\nAnswer:"


def mmlu(folder: Path, request: TaskRequest) -> TaskData:
    """57 subjects with four choices, rated by the letter; shots from each subject's dev file."""
    home = folder / "mmlu"
    files = sorted((home / "test").glob("*_test.csv"))
    if not files:
        raise InputError("no *_test.csv files", where=str(home / "test"))
    items = [item for path in files for item in _mmlu_subject(home, path, request.shots)]
    # a choice is one token long, so that one draw is the exact likelihood
    files = [*sorted((home / "dev").glob("*_dev.csv")), *files]
    return _task(request, "MMLU", "choices", items, files, draws=1)


def _mmlu_subject(home: Path, path: Path, shots: int) -> Iterator[TaskItem]:
    subject = path.stem.removesuffix("_test")
    name = subject.replace("_", " ")
    head = f"The following are multiple choice questions (with answers) about {name}.\n\n"
    if shots:
        rows = _mmlu_rows(home / "dev" / f"{subject}_dev.csv")[:shots]
        head += "".join(f"{question} {'ABCD'[right]}\n\n" for question, right in rows)
    for question, right in _mmlu_rows(path):
        prompt = head + question
        yield TaskItem(prompt, "ABCD"[right], tuple(Choice(prompt, f" {letter}") for letter in "ABCD"), right)


def _mmlu_rows(path: Path) -> list[tuple[str, int]]:
    """(question with its choices, index of the right one)."""
    out = []
    reader = csv.reader((line for _, line in read_lines(path)), strict=True)
    try:
        for row in reader:
            if len(row) != 6 or row[5].strip() not in ("A", "B", "C", "D"):
                where = f"{path}:{reader.line_num}"
                raise InputError("a row must be question,A,B,C,D,answer letter", where=where)
            options = "\n".join(f"{letter}. {text}" for letter, text in zip("ABCD", row[1:5], strict=True))
            out.append((f"{row[0].strip()}\n{options}\nAnswer:", "ABCD".index(row[5].strip())))
    except csv.Error as error:
        raise InputError(f"not valid CSV: {error}", where=f"{path}:{reader.line_num}") from None
    return out


@dataclass(frozen=True)
class _ChoiceFile:
    """A task of rated choices in one JSON-lines file."""

    title: str
    file: str
    item: Callable[[Row, Path, int], TaskItem]

    def __call__(self, folder: Path, request: TaskRequest) -> TaskData:
        if request.shots:
            what = f'"{request.name}" is measured without examples; the recipe asks for shots {request.shots}'
            raise InputError(what, hint="write shots 0, or leave it out")
        path = folder / self.file
        items = [self.item(row, path, line) for line, row in read_rows(path)]
        return _task(request, self.title, "choices", items, [path])


def _question(row: Row, path: Path, line: int) -> TaskItem:
    prompt = f"Question: {text_field(row, 'question', path, line)}\nAnswer:"
    return _rated(prompt, list_field(row, "choices", path, line), row, "answer", path, line)


def _hellaswag(row: Row, path: Path, line: int) -> TaskItem:
    prompt = f"{text_field(row, 'activity_label', path, line)}: {text_field(row, 'ctx', path, line)}"
    return _rated(prompt, list_field(row, "endings", path, line), row, "label", path, line)


def _rated(prompt: str, options: list[str], row: Row, answer: str, path: Path, line: int) -> TaskItem:
    right = index_field(row, answer, len(options), path, line)
    return TaskItem(prompt, options[right], tuple(Choice(prompt, f" {text}") for text in options), right)


def _winogrande(row: Row, path: Path, line: int) -> TaskItem:
    """Each option is put in the blank; what is rated is the rest of the sentence, the same text for both."""
    sentence, options = text_field(row, "question", path, line), list_field(row, "choices", path, line)
    before, blank, after = sentence.partition("_")
    if not blank or not after.strip():
        raise InputError('the question has no "_" with text after it', where=f"{path}:{line}")
    right = index_field(row, "answer", len(options), path, line)
    return TaskItem(sentence, options[right], tuple(Choice(before + text, after) for text in options), right)


def _first(path: Path, count: int) -> Iterator[tuple[Path, int, Row]]:
    """The first rows of a file, which is not opened for none."""
    if count:
        rows = read_rows(path)
        for _, (line, row) in zip(range(count), rows, strict=False):
            yield path, line, row


def _task(
    request: TaskRequest,
    title: str,
    scoring: Literal["number", "choices"],
    items: Sequence[TaskItem],
    files: Sequence[Path],
    stop: tuple[str, ...] = (),
    draws: int = 128,
) -> TaskData:
    if not items:
        raise InputError("the task file is empty", where=str(files[-1]))
    chosen = spread(items, request.limit)
    sizes = (request.length, request.steps, request.block)
    return TaskData(request.name, title, (scoring,), chosen, *sizes, stop, draws, files=tuple(files))


TASKS: Mapping[str, Callable[[Path, TaskRequest], TaskData]] = {
    "gsm8k": gsm8k,
    "mmlu": mmlu,
    "arc_challenge": _ChoiceFile("ARC-Challenge", "multiple-choice/ARC-Challenge-test.jsonl", _question),
    "arc_easy": _ChoiceFile("ARC-Easy", "multiple-choice/ARC-Easy-test.jsonl", _question),
    "openbookqa": _ChoiceFile("OpenBookQA", "multiple-choice/openbookqa-test.jsonl", _question),
    "piqa": _ChoiceFile("PIQA", "multiple-choice/piqa-test.jsonl", _question),
    "winogrande": _ChoiceFile("WinoGrande", "multiple-choice/winogrande-test.jsonl", _winogrande),
    "hellaswag": _ChoiceFile("HellaSwag, 1,000 rows", "hellaswag-1000/hellaswag.jsonl", _hellaswag),
}
