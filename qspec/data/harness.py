"""Tasks of the language model evaluation harness (lm-eval): its prompts and its scoring, on data of this machine.

Which data sets a task reads is known from its configuration alone. While a task is built, lm-eval's calls of
`datasets.load_dataset` are answered from `qspec.data.hub`, and the runner of model-written code that its code tasks
load is `CODE`: nothing goes to the network, and no such code runs outside the sandbox.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from importlib import import_module
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

from qspec.data.files import read_rows
from qspec.data.hub import REVISIONS, WHOLE, Found, HubData, needs_extra
from qspec.data.items import Choice, NotMeasured, Scores, Scoring, TaskData, TaskItem, spread
from qspec.errors import InputError
from qspec.language.presets import PRESETS, Preset
from qspec.language.spec import TaskRequest

FEWSHOT_SEED = 1234  # lm-eval's own default, so that examples are those that `lm_eval` draws
RIGHT_OR_WRONG = (
    "acc", "acc_norm", "acc_bytes", "acc_mutual_info", "exact_match", "math_verify", "pass@1", "pass_at_1",
)  # fmt: skip
_FILES: Mapping[str, str] = {  # the files of a configuration, where its folder is not called as it is
    "Rowan/hellaswag": "data/*",
    "baber/piqa": "piqa_*",
    "openai/openai_humaneval": "openai_humaneval/*",
}
_SPLIT = re.compile(r"(?:^|[_\-./])(train|validation|test|dev|prompt)(?=[_\-.]|$)")
_NAMED = re.compile(rb'^"?(?:task|group)"?:[ \t]*"?([\w.\-/]+)"?[ \t]*\r?$', re.MULTILINE)

Find = Callable[[HubData], Found | None]  # None leaves the data set to the package datasets


class CodeRunner:
    """What lm-eval's code tasks get in the place of `code_eval` of the package evaluate.

    run: whether a program passes its tests; None, no program may run.
    """

    run: Callable[[str], bool] | None = None

    def compute(
        self, references: Sequence[str], predictions: Sequence[Sequence[str]], k: Sequence[int] = (1,), **_: Any
    ) -> tuple[dict[str, float], None]:
        """pass@1: the share of all predictions that pass their tests, the mean over problems."""
        if self.run is None or list(k) != [1]:
            raise RuntimeError("only pass@1, and only where model-written code may run")
        shares = [
            sum(self.run(f"{program}\n{tests}") for program in programs) / len(programs)
            for programs, tests in zip(predictions, references, strict=True)
        ]
        return {"pass@1": sum(shares) / len(shares)}, None


CODE = CodeRunner()


@dataclass(frozen=True)
class Leaf:
    """One task without subtasks, as its file describes it. data: None where it reads no data set."""

    name: str
    data: HubData | None
    runs_code: bool
    kind: str  # lm-eval's output_type


def leaves(name: str) -> tuple[Leaf, ...]:
    """The tasks behind a name of lm-eval's: itself, or those of a group or tag.

    Errors: InputError without lm-eval, and for a name that it does not have.
    """
    registry = _registry(_library(name), name)
    found: dict[str, Leaf] = {}
    for leaf in _walk(registry, name):
        found.setdefault(leaf.name, leaf)
    return tuple(found.values())


def load(request: TaskRequest, find: Find) -> TaskData | NotMeasured:
    """The task's items with prompts written out, spread evenly where there is a limit.

    An item's prompt does not depend on the limit. Errors: InputError for data that are not here or lack a split, and
    for a task that lm-eval cannot build.
    """
    preset = PRESETS.get(request.name) or Preset(title=request.name, task=request.name, metric="")
    parts = leaves(preset.task)
    if reason := unfit(parts):
        return NotMeasured(request.name, reason)
    found: list[Found] = []

    def recorded(data: HubData) -> Found | None:
        place = find(data)
        found.extend([place] if place else [])
        return place

    tasks = _built(_library(preset.task), preset.task, [leaf.name for leaf in parts], recorded)
    metrics = _metrics(tasks[0])
    if not metrics:
        names = ", ".join(tasks[0].aggregation())
        return NotMeasured(request.name, f"its scores ({names}) do not tell right answers from wrong ones")
    if len({str(_stop(task)) for task in tasks}) > 1:
        return NotMeasured(request.name, "its subtasks end their answers differently; name them one by one")
    asked = [one for task in tasks for one in _questions(task, _shots(task, request))]
    chosen = [make() for make in spread(asked, request.limit)]
    rated = tasks[0].OUTPUT_TYPE == "multiple_choice"
    metric = preset.metric if preset.metric in metrics else metrics[0]
    files = tuple(dict.fromkeys(path for one in found for path in one.files))
    return TaskData(
        name=request.name,
        title=preset.title,
        scorings=(Scoring(metric, rated, _Scores({one.id: one for one in chosen})),),
        items=tuple(_item(one) for one in chosen),
        length=request.length,
        steps=request.steps,
        block=request.block,
        stop=_stop(tasks[0]),
        draws=preset.draws,
        files=files,
        revision=", ".join(dict.fromkeys(one.revision for one in found)),
        runs_code=parts[0].runs_code,
    )


# --- what a name stands for ---


def _library(what: str) -> Any:
    try:
        from lm_eval import tasks
    except ImportError as error:
        raise needs_extra(f'task "{what}"', "lm-eval") from error
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    return tasks


@cache
def _files(root: Path) -> Mapping[str, Path]:
    """Name of a task or group -> its file. lm-eval's own index parses its 14,000 files, which takes many seconds."""
    found: dict[str, Path] = {}
    for path in sorted(root.rglob("*.yaml")):
        for name in _NAMED.findall(path.read_bytes()):
            found.setdefault(name.decode(), path)
    return found


@cache
def _registry(library: Any, name: str) -> Any:
    """lm-eval's task manager for the folders that a name needs; for all of them where it is a tag."""
    root = Path(library.__file__).parent
    files = _files(root)
    folders: set[Path] = set()
    missing = {files[name].parent} if name in files else set()
    while missing:
        folders |= missing
        manager = library.TaskManager(include_path=sorted(folders), include_defaults=False)
        unknown = _unknown(manager, name)
        if not unknown:
            return manager
        missing = {files[child].parent for child in unknown if child in files} - folders
    if any(name.encode() in path.read_bytes() for path in root.rglob("*.yaml")):
        manager = library.TaskManager()
        if not _unknown(manager, name):
            return manager
    close = get_close_matches(name, files, n=1)
    hint = f'did you mean "{close[0]}"?' if close else "`lm_eval ls tasks` lists its tasks"
    raise InputError(f'lm-eval has no task "{name}"', hint=hint)


def _unknown(manager: Any, name: str) -> set[str]:
    """Names below a name that the manager does not know; the name itself, if it is one."""
    entry = manager.task_index.get(name)
    if entry is None:
        return {name}
    children = _children(entry)
    return {one for child in children if isinstance(child, str) for one in _unknown(manager, child)}


def _children(entry: Any) -> Sequence[Any]:
    if entry.kind.name == "TAG":
        return sorted(entry.tags)
    below = (entry.cfg or {}).get("task") if entry.kind.name == "GROUP" else ()
    return below if isinstance(below, list) else ()


def _walk(manager: Any, name: str) -> Iterator[Leaf]:
    entry = manager.task_index[name]
    children = _children(entry)
    for child in children:
        if not isinstance(child, str):
            raise InputError(f'the group "{name}" of lm-eval changes its tasks', hint="name the tasks one by one")
        yield from _walk(manager, child)
    if not children:
        config = entry.cfg or {}
        data = config.get("dataset_path")
        source = hub_data(data, config.get("dataset_name")) if isinstance(data, str) else None
        yield Leaf(name, source, bool(config.get("unsafe_code")), str(config.get("output_type", "generate_until")))


def hub_data(id: str, name: str | None) -> HubData:
    """The files of one configuration of a data set: its folder, where that is known; else all files."""
    pattern = _FILES.get(id) or (f"{name}/*" if name and id in REVISIONS else WHOLE)
    return HubData(id, (pattern,))


def unfit(parts: Sequence[Leaf]) -> str | None:
    """Why tasks cannot be measured, None where they can."""
    kinds = {leaf.kind for leaf in parts}
    if len(kinds) > 1 or kinds - {"multiple_choice", "generate_until"}:
        return f"lm-eval asks it by {' and '.join(sorted(kinds))}; rated choices or written answers can be compared"
    return None


# --- building ---


def _built(library: Any, name: str, names: Sequence[str], find: Find) -> list[Any]:
    manager = _registry(library, name)
    try:
        with answered(find):
            tasks = manager.load(list(names))["tasks"]
    except InputError:
        raise
    except ImportError as error:
        raise InputError(
            f'task "{name}" needs packages that are not installed: {_first_line(error)}',
            hint="install what lm-eval names; for the benchmarks of recipes: pip install 'qspec[eval]'",
        ) from error
    except Exception as error:  # whatever a task's own code raises at rows that it does not understand
        raise InputError(
            f'lm-eval cannot build the task "{name}" from the data here: {_first_line(error)}',
            hint="compare the files with those of the hub: qspec data RECIPE",
        ) from error
    return [tasks[one] for one in names]


def _first_line(error: Exception) -> str:
    if isinstance(error, KeyError):
        return f"{error} is missing"
    return str(error).strip().partition("\n")[0] or type(error).__name__


@contextmanager
def answered(find: Find) -> Iterator[None]:
    """What lm-eval's tasks ask of the packages datasets and evaluate is answered here: data sets, a runner of code."""
    import datasets

    own, real, run = datasets.load_dataset, sys.modules.get("evaluate"), CODE.run

    def load_dataset(path: str, name: str | None = None, **options: Any) -> Any:
        data = hub_data(path, name)
        found = find(data)
        if found and data.id in REVISIONS:
            return _splits(datasets, found.files)
        return own(str(found.folder) if found else path, name=name, **options)

    datasets.load_dataset = load_dataset
    sys.modules["evaluate"] = _Evaluate(real)
    CODE.run = run or (lambda _: False)  # code tasks try the runner when they are imported
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        datasets.load_dataset, CODE.run = own, run
        if real is None:
            sys.modules.pop("evaluate", None)
        else:
            sys.modules["evaluate"] = real


class _Evaluate(ModuleType):
    """Stands for the package evaluate, which takes seconds to import, and which code tasks ask for nothing else."""

    def __init__(self, real: ModuleType | None) -> None:
        super().__init__("evaluate")
        self.__spec__ = ModuleSpec("evaluate", None)
        self.real = real

    def load(self, what: str, *args: Any, **options: Any) -> Any:
        return CODE if what == "code_eval" else self._real.load(what, *args, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    @property
    def _real(self) -> Any:
        if self.real is None:
            del sys.modules["evaluate"]
            self.real = sys.modules["evaluate"] = import_module("evaluate")
        return self.real


def _splits(datasets: Any, files: Sequence[Path]) -> Any:
    """The splits of a data set, by the names of its files; held in memory, not in a cache of the package's."""
    splits: dict[str, list[Mapping[str, Any]]] = {}
    for path in files:
        split = _SPLIT.search(path.name)
        if split is None:
            raise InputError("the file's name has no split", where=str(path), hint="call it test.jsonl, train.jsonl")
        splits.setdefault(split[1], []).extend(row for _, row in read_rows(path))
    return datasets.DatasetDict({split: datasets.Dataset.from_list(rows) for split, rows in splits.items()})


# --- asking ---


@dataclass(frozen=True)
class _Asked:
    """One document of a task and what lm-eval asks about it."""

    task: Any
    number: int
    doc: Mapping[str, Any]
    requests: tuple[Any, ...]

    @property
    def id(self) -> str:
        return f"{self.task.task_name}/{self.number}"


def _shots(task: Any, request: TaskRequest) -> int:
    own = task.get_config("num_fewshot")
    if request.shots is None:
        return int(own or 0)
    if own == 0 and request.shots:
        what = f'"{request.name}" is measured without examples; the recipe asks for shots {request.shots}'
        raise InputError(what, hint="write shots 0, or leave it out")
    return request.shots


def _questions(task: Any, shots: int) -> Iterator[Callable[[], _Asked]]:
    """What asks each document, in order. lm-eval draws the examples of one after the other, so those of a document that
    is left out are drawn too."""
    task.set_config("num_fewshot", shots)
    task.set_fewshot_seed(FEWSHOT_SEED)
    drawn = task.sampler.sample if shots and hasattr(task, "sampler") else None
    same = task.fewshot_cfg.split is not None and task.fewshot_cfg.split == task.config.test_split
    for number, doc in enumerate(task.eval_docs):
        examples = drawn(n=shots, eval_doc=doc if same else None) if drawn else ()
        yield _question(task, number, doc, examples)


def _question(task: Any, number: int, doc: Mapping[str, Any], examples: Sequence[Any]) -> Callable[[], _Asked]:
    def ask() -> _Asked:
        sampler = getattr(task, "sampler", None)
        task.sampler = SimpleNamespace(sample=lambda **_: examples)
        try:
            text = task.fewshot_context(doc, num_fewshot=len(examples), gen_prefix=task.doc_to_prefix(doc))
        finally:
            task.sampler = sampler
        made = task.construct_requests(doc=doc, ctx=text, metadata=(task.task_name, number, 1))
        return _Asked(task, number, doc, tuple(made if isinstance(made, list) else [made]))

    return ask


def _item(asked: _Asked) -> TaskItem:
    task, doc = asked.task, asked.doc
    if task.OUTPUT_TYPE == "generate_until":
        return TaskItem(str(asked.requests[0].args[0]), str(task.doc_to_target(doc)), id=asked.id)
    choices = tuple(Choice(*request.args) for request in asked.requests)
    options = task.doc_to_choice(doc)
    gold = task.doc_to_text(doc) if task.multiple_input else task.doc_to_target(doc)
    gold = gold[0] if isinstance(gold, list) else gold
    right = options.index(gold) if isinstance(gold, str) else int(gold)
    return TaskItem(choices[right].context, choices[right].text, choices, right, asked.id)


def _stop(task: Any) -> tuple[str, ...]:
    until = (task.config.generation_kwargs or {}).get("until", ())
    return tuple(part for part in ([until] if isinstance(until, str) else until) if part)


# --- scoring ---


def _metrics(task: Any) -> list[str]:
    """The numbers of a task that are means of right and wrong answers, with the filter's name where it has several."""
    names = ["pass@1" if name == "pass_at_k" else name for name in task.aggregation()]
    filters = [one.name for one in task._filters]
    marked = len(filters) > 1
    return [f"{name},{one}" if marked else name for one in filters for name in names if name in RIGHT_OR_WRONG]


@dataclass(frozen=True)
class _Scores:
    """lm-eval's filters and scoring, of the answers to what was asked. asked: by the ids of the items."""

    asked: Mapping[str, _Asked]

    def __call__(self, items: Sequence[TaskItem], answers: Sequence[Any]) -> list[Scores]:
        requests: dict[str, list[Any]] = {}  # by task
        for item, answer in zip(items, answers, strict=True):
            one = self.asked[item.id]
            values = [(value, False) for value in answer] if one.task.OUTPUT_TYPE == "multiple_choice" else [answer]
            for request, value in zip(one.requests, values, strict=True):
                request.resps, request.filtered_resps = [value], {}
            requests.setdefault(one.task.task_name, []).extend(one.requests)
        for one in {self.asked[item.id].task.task_name: self.asked[item.id] for item in items}.values():
            one.task._instances = requests[one.task.task_name]
            one.task.apply_filters()
        return [self._of(self.asked[item.id]) for item in items]

    def _of(self, one: _Asked) -> Scores:
        scores: dict[str, float] = {}
        filters = [own.name for own in one.task._filters]
        for name in filters:
            found = one.task.process_results(one.doc, [request.filtered_resps[name] for request in one.requests])
            for metric, value in found.items():
                if metric in RIGHT_OR_WRONG:
                    scores[f"{metric},{name}" if len(filters) > 1 else metric] = float(value)
        return scores
