"""Where texts and tasks come from: a stand-in's own files, data sets of the hub, or files a recipe names.

A checkpoint folder with `standin.json` answers every named text and task with its own data and sampler
lengths, and each such replacement is recorded, so that nobody takes a stand-in's score for the benchmark's.
Otherwise the name of a text stands for files of the hub (`qspec.data.texts`), and that of a task for one of lm-eval's
(`qspec.data.harness`), whose data sets are of the hub too.
"""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal, NoReturn, Protocol

from qspec.data import harness
from qspec.data.files import Chat, Row, list_field, read_documents, read_lines, read_rows, text_field
from qspec.data.hub import DATA_VARIABLE, SHOWN, Found, HubData
from qspec.data.items import CHOICES, EXACT, Choice, DataPin, NotMeasured, TaskData, TaskItem, TextData, spread
from qspec.data.texts import TEXTS, Part, Split
from qspec.errors import InputError
from qspec.language.presets import harness_name
from qspec.language.spec import Calibration, Evaluation, FileText, NamedText, TaskRequest, TextSource
from qspec.models.chat import ChatSetting

STANDIN_FILE = "standin.json"
STANDIN_ITEMS = 48  # items of a stand-in's task unless the recipe sets a limit
STANDIN_DRAWS = 2
_SPLIT_TITLES: Mapping[Split, str] = {"calibration": "calibration", "heldout": "held-out"}


@dataclass(frozen=True)
class StandinTask:
    title: str
    file: str
    length: int
    steps: int
    block: int


@dataclass(frozen=True)
class Standin:
    """What standin.json says."""

    name: str
    folder: Path
    texts: Mapping[str, str]
    tasks: Mapping[str, StandinTask]


@dataclass(frozen=True)
class Need:
    """A data set that a recipe names. use: what for. data: which files those are. found: where they are, None where
    one is missing. get: how to come by them."""

    use: Literal["calibration", "nelbo", "tasks"]
    name: str
    data: str
    found: Found | None
    get: str

    def __str__(self) -> str:
        """Which data set, as in a list of several."""
        return f"{self.name}: {self.data}"


class Template(Chat, Protocol):
    """A chat template; `qspec.runtime.ChatTemplate` is one."""

    def used(self, setting: ChatSetting) -> bool: ...

    def prompt(self, text: str) -> str: ...


@dataclass
class DataSources:
    """Resolves the texts and tasks of one recipe for one checkpoint.

    checkpoint: the model's folder; None where there is none. recipe_folder: where relative paths start.
    chat: makes text of messages that a file holds, and of a task's prompts; None, there is no tokenizer. download:
    fetch what is missing. run_code: tasks may be measured whose score runs what the model wrote.
    replacements: one sentence for every name that the stand-in answered, in the order of use.
    Errors: InputError for a name that is unknown, data that are missing and files that cannot be read.
    """

    checkpoint: Path | None
    recipe_folder: Path
    environment: Mapping[str, str] = field(default_factory=lambda: os.environ)
    chat: Template | None = None
    download: bool = False
    run_code: bool = False
    replacements: list[str] = field(default_factory=list, init=False)
    standin: Standin | None = field(init=False)
    _texts: dict[tuple[TextSource, Split], TextData] = field(default_factory=dict, init=False)
    _tasks: dict[TaskRequest, TaskData | NotMeasured] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        self.standin = read_standin(self.checkpoint) if self.checkpoint else None

    def needs(self, calibrate: Calibration, evaluate: Evaluation) -> tuple[Need, ...]:
        """Every data set that the recipe names and that no stand-in answers, once for each use."""
        texts: list[tuple[Literal["calibration", "nelbo"], TextSource, Split]]
        texts = [("calibration", calibrate.source, "calibration")]
        texts += [("nelbo", request.text, "heldout") for request in evaluate.nelbo]
        needs = [self._need(use, source, split) for use, source, split in texts]
        tasks = () if self.standin else evaluate.tasks
        return tuple(need for need in needs if need) + tuple(need for task in tasks for need in self._task_needs(task))

    def check(self, calibrate: Calibration, evaluate: Evaluation) -> list[DataPin]:
        """Finds everything that the recipe names, so that a missing file is known before hours of work. Texts are read.

        Returns exactly which data that is, for the lock and the report. Errors: InputError naming all that is missing.
        """
        absent = [need for need in self.needs(calibrate, evaluate) if need.found is None]
        if absent:
            raise _missing(absent)
        source = calibrate.source
        pins = [DataPin.of("calibration", source.name, self.calibration(source))]
        pins += [DataPin.of("nelbo", one.text.name, self.heldout(one.text)) for one in evaluate.nelbo]
        return pins + [DataPin.of("tasks", task.name, self._files(task)) for task in evaluate.tasks]

    def calibration(self, source: TextSource) -> TextData:
        """The text that statistics are taken from."""
        return self._text(source, "calibration")

    def heldout(self, source: TextSource) -> TextData:
        """The text that the NELBO is measured on: another split of a named text, the whole file of a file."""
        return self._text(source, "heldout")

    def task(self, request: TaskRequest) -> TaskData | NotMeasured:
        """The task's items with prompts written out, spread evenly over the file where there is a limit."""
        task = self._loaded(request)
        if isinstance(task, TaskData) and task.runs_code and not self.run_code:
            return NotMeasured(request.name, "its score needs model-written code to be run, which --run-code allows")
        return task

    def _loaded(self, request: TaskRequest) -> TaskData | NotMeasured:
        if request not in self._tasks:
            self._tasks[request] = self._chatted(request, self._task(request))
        task = self._tasks[request]
        if self.standin and isinstance(task, TaskData):
            self._record(_replaced(self.standin, request.name))
        return task

    def _chatted(self, request: TaskRequest, task: TaskData | NotMeasured) -> TaskData | NotMeasured:
        if isinstance(task, NotMeasured) or self.chat is None or not self.chat.used(request.chat):
            return task
        return asked(task, self.chat.prompt)

    def _task(self, request: TaskRequest) -> TaskData | NotMeasured:
        if self.standin:
            return _standin_task(self.standin, request)
        return harness.load(request, lambda data: self._found(f"task {request.spelled}", data))

    def _files(self, request: TaskRequest) -> TaskData | NotMeasured | Found:
        """What says which files a task is read from; its prompts, of which there may be thousands, are not written."""
        found = [] if self.standin else [need.found for need in self._task_needs(request) if need.found]
        if not found:
            return self._loaded(request)
        files = tuple(path for one in found for path in one.files)
        return Found(found[0].folder, ", ".join(dict.fromkeys(one.revision for one in found)), files)

    def _task_needs(self, request: TaskRequest) -> Iterator[Need]:
        """The data sets of a task, each with all that its parts read of it."""
        files: dict[str, dict[str, None]] = {}
        parts = harness.leaves(harness_name(request.name))
        for leaf in () if harness.unfit(parts) else parts:
            if leaf.data:
                files.setdefault(leaf.data.id, {}).update(dict.fromkeys(leaf.data.files))
        for id, patterns in files.items():
            yield self._hub_need("tasks", f"task {request.spelled}", HubData(id, tuple(patterns)))

    def _need(self, use: Literal["calibration", "nelbo"], source: TextSource, split: Split) -> Need | None:
        """What a text needs, None where the stand-in answers."""
        if isinstance(source, FileText):
            path = self.recipe_folder / source.path
            found = Found(path.parent, "", (path,)) if path.exists() else None
            return Need(use, f"text {source}", str(path), found, "put the file there")
        part = _part(source.name, split)
        return None if self.standin else self._hub_need(use, f'text "{source.name}"', part.data)

    def _hub_need(self, use: Literal["calibration", "nelbo", "tasks"], name: str, data: HubData) -> Need:
        found = data.find(self.environment, download=self.download)
        wanted = "".join(f" --include '{pattern}'" for pattern in data.files) if len(data.files) <= SHOWN else ""
        get = f"hf download {data.id} --repo-type dataset --revision {data.revision}{wanted}"
        return Need(use, name, str(data), found, get)

    def _found(self, name: str, data: HubData) -> Found:
        need = self._hub_need("tasks", name, data)
        if need.found is None:
            raise _missing([need])
        return need.found

    def _text(self, source: TextSource, split: Split) -> TextData:
        if (source, split) not in self._texts:
            self._texts[source, split] = self._read(source, split)
        text = self._texts[source, split]
        if self.standin and isinstance(source, NamedText):
            self._record(f"text {source.name}: {text.title}")
        return text

    def _read(self, source: TextSource, split: Split) -> TextData:
        if isinstance(source, FileText):
            path = self.recipe_folder / source.path
            return TextData(f'file "{source.path}"', (path,), read_documents(path, source.field, self.chat))
        part = _part(source.name, split)
        if self.standin:
            title = f"{self.standin.name}'s own {_SPLIT_TITLES[split]} text"
            path = _inside(self.standin.folder, self.standin.texts[split])
            return TextData(title, (path,), read_documents(path, "text"), _source("text"))
        return part.read(self._found(f'text "{source.name}"', part.data))

    def _record(self, sentence: str) -> None:
        if sentence not in self.replacements:
            self.replacements.append(sentence)


def _part(name: str, split: Split) -> Part:
    if name not in TEXTS:
        _unknown("text", name, TEXTS)
    return TEXTS[name][split]


def _missing(needs: Sequence[Need]) -> InputError:
    """The error that names all data sets that are not here."""
    names = dict.fromkeys(str(need) for need in needs)
    listed = "".join(f"\n  {name}" for name in names)
    what = f"data that are not on this machine:{listed}"
    return InputError(
        what,
        hint=f"`qspec data RECIPE` tells how to get them, --download fetches them, {DATA_VARIABLE} names a folder of "
        'copies; a file of your own is file("text.jsonl", field = "text")',
    )


def asked(task: TaskData, prompt: Callable[[str], str]) -> TaskData:
    """The same with every prompt and every context of a choice as a user's message, which the title says."""
    prompt = cache(prompt)  # the choices of an item share a context
    items = [
        replace(
            item,
            prompt=prompt(item.prompt),
            choices=tuple(replace(choice, context=prompt(choice.context)) for choice in item.choices),
        )
        for item in task.items
    ]
    return replace(task, items=tuple(items), title=f"{task.title}, asked in chat")


def _standin_task(standin: Standin, request: TaskRequest) -> TaskData | NotMeasured:
    entry = standin.tasks.get(request.name)
    if entry is None:
        return NotMeasured(request.name, f"{standin.name} has no task of its own in its place")
    path = _inside(standin.folder, entry.file)
    rows = [_standin_item(row, path, line) for line, row in read_rows(path)]
    if not rows:
        raise InputError("the task file is empty", where=str(path))
    items = spread(rows, request.limit or STANDIN_ITEMS)
    return TaskData(
        name=request.name,
        title=f"{entry.title} ({standin.name})",
        scorings=(EXACT, CHOICES) if all(item.choices for item in items) else (EXACT,),
        items=items,
        length=entry.length,
        steps=entry.steps,
        block=entry.block,
        draws=STANDIN_DRAWS,
        source=_source(entry.title),
        files=(path,),
    )


def _replaced(standin: Standin, name: str) -> str:
    entry = standin.tasks[name]
    lengths = f"length {entry.length}, steps {entry.steps}, block {entry.block}"
    return f'task {name}: {standin.name}\'s own "{entry.title}" ({lengths})'


def _source(what: str) -> str:
    """What metrics say of data that a stand-in put in the place of those that were named."""
    return f"stand-in {what}"


def read_standin(folder: Path) -> Standin | None:
    """The description of a stand-in checkpoint; None where the folder holds a real one."""
    path = folder / STANDIN_FILE
    if not path.is_file():
        return None
    text = "".join(line for _, line in read_lines(path))
    try:
        data = json.loads(text)
        texts = {split: _text_of(data["texts"], split) for split in ("calibration", "heldout")}
        tasks = {str(name): _standin_task_entry(entry) for name, entry in data["tasks"].items()}
        return Standin(_text_of(data, "name"), folder, texts, tasks)
    except KeyError as error:
        raise InputError(f"the stand-in's description lacks {error}", where=str(path)) from None
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"the stand-in's description is not understood: {error}", where=str(path)) from None


def _standin_task_entry(entry: Row) -> StandinTask:
    sizes = [entry[key] for key in ("length", "steps", "block")]
    if any(type(size) is not int or size < 1 for size in sizes):
        raise ValueError(f"length, steps and block must be positive whole numbers, not {sizes}")
    return StandinTask(_text_of(entry, "title"), _text_of(entry, "file"), *sizes)


def _text_of(row: Mapping[str, Any], key: str) -> str:
    value = row[key]
    if not isinstance(value, str):
        raise TypeError(f'"{key}" must be text')
    return value


def _standin_item(row: Row, path: Path, line: int) -> TaskItem:
    prompt, answer = (text_field(row, name, path, line) for name in ("prompt", "answer"))
    id = f"{path.stem}/{line}"
    if "choices" not in row:
        return TaskItem(prompt, answer, id=id)
    options = list_field(row, "choices", path, line)
    if answer not in options:
        raise InputError("the answer is not among the choices", where=f"{path}:{line}")
    gap = "" if prompt[-1:].isspace() else " "
    choices = tuple(Choice(prompt, f"{gap}{option}") for option in options)
    return TaskItem(prompt, answer, choices, options.index(answer), id)


def _inside(folder: Path, name: str) -> Path:
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        raise InputError(f'"{name}" points out of the checkpoint\'s folder', where=str(folder / STANDIN_FILE))
    return path


def _unknown(kind: str, name: str, known: Iterable[str]) -> NoReturn:
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1)
    hint = f'did you mean "{close[0]}"?' if close else f"known: {', '.join(names)}"
    raise InputError(f'unknown {kind} "{name}"', hint=hint)
