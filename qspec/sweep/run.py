"""Runs a sweep: both models over the grid, and what each text changed."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from qspec import passes, runtime
from qspec.artifact import MEASURED
from qspec.data import DataSources, NotMeasured, TaskData
from qspec.diagnostics import Source
from qspec.errors import InputError, UsageError
from qspec.evaluate.artifact import batch_owner, find_baseline
from qspec.evaluate.kept import KeptBatches
from qspec.evaluate.results import task_label
from qspec.evaluate.statistics import bootstrap
from qspec.evaluate.tasks import denoise, prepared
from qspec.evaluate.trajectories import Trajectory, compare
from qspec.language import load_source
from qspec.manifest import Manifest
from qspec.models.family import DecoderShape
from qspec.models.sampler import Denoiser, Settings, settings_for, stops, through_end
from qspec.plan import bits_text
from qspec.precision import exact_products
from qspec.progress import Progress
from qspec.report.environment import environment
from qspec.sweep import Cell, Sweep


@dataclass(frozen=True)
class Grid:
    """What is varied. steps: shares of the task's own. others: setting of the sampler -> values; None is its own.
    task: the first that is denoised, where it is None. limit: items. length: tokens of a text, with steps in
    proportion; None, the task's."""

    steps: tuple[float, ...] = (1.0, 0.5, 0.25, 0.125)
    others: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    task: str | None = None
    limit: int = 16
    length: int | None = None

    def sized(self, task: TaskData) -> TaskData:
        """The task with texts of the grid's length."""
        if self.length is None:
            return task
        steps = max(1, round(task.steps * self.length / task.length))
        return replace(task, length=self.length, steps=steps, block=min(task.block, self.length))

    def cells(self, task: TaskData) -> Iterator[dict[str, Any]]:
        """Every point: steps and the other settings by name."""
        for values in itertools.product(*self.others.values()):
            chosen = {key: value for key, value in zip(self.others, values, strict=True) if value is not None}
            for share in self.steps:
                yield {"steps": max(1, round(task.steps * share)), **chosen}


@exact_products()
def run_sweep(artifact: Path, grid: Grid, model: str | None, device: str, files: Path, progress: Progress) -> Sweep:
    """Both models' texts at every point of the grid.

    model: the unquantized checkpoint, None to find it. files: where the recipe's relative paths start. Killed, the same
    call goes on: batches are kept in the artifact's folder. Errors: InputError for a changed artifact, a checkpoint
    that is not here, a recipe without a task that is denoised, and where no point of the grid fits the sampler.
    """
    manifest = Manifest.read(artifact)
    spec = load_source(Source(str(artifact / "recipe.qs"), manifest.recipe), passes.available()).spec
    original = find_baseline(manifest.model, model)
    sources = DataSources(original, files, chat=runtime.ChatTemplate(original))
    task = grid.sized(_task([sources.task(one) for one in spec.evaluate.limited(grid.limit).tasks], grid.task))
    with progress.phase("load"):
        quantized, tokenizer = runtime.load(artifact, device)
        baseline = runtime.load(original, device)[0]
    shape, seed, execution = quantized.shape, manifest.calibration.seed, runtime.execution(quantized.device)
    own, prompts = prepared(shape, task, tokenizer, seed)
    points, skipped = _points(grid, task, shape, seed)
    batches = KeptBatches(artifact / MEASURED, batch_owner(manifest, execution))
    models = (batches.of(baseline, "unquantized"), batches.of(quantized, "quantized"))
    runs = _Runs(models, prompts, progress, 2 * len(prompts) * (1 + len(points)))
    with progress.phase("sweep"):
        reference = runs.both(own)
        counted = through_end(reference[0].tokens, shape.ends)
        cells = tuple(
            _cell(named, settings, runs.both(settings), reference, counted, shape.ends) for named, settings in points
        )
    return Sweep(
        model=manifest.model.id,
        standin=manifest.model.standin,
        recipe=manifest.name,
        bits=bits_text(manifest.bits_per_weight, manifest.bits_per_weight_model),
        task=task_label(task.name, task.source),
        items=len(prompts),
        length=task.length,
        seed=seed,
        reference={key: value for key, value in asdict(own).items() if value and key != "stop"},  # it changes no text
        cells=cells,
        skipped=skipped,
        execution=execution,
        environment=environment(),
    )


def _task(tasks: Sequence[TaskData | NotMeasured], name: str | None) -> TaskData:
    found = [task for task in tasks if isinstance(task, TaskData) and not all(one.rated for one in task.scorings)]
    for task in found:
        if name in (None, task.name):
            return task
    names = ", ".join(task.name for task in found) or "none"
    raise InputError(
        "the recipe measures no task that is denoised" if name is None else f"the recipe measures no task {name}",
        hint=f"tasks that are denoised there: {names}",
    )


def _points(
    grid: Grid, task: TaskData, shape: DecoderShape, seed: int
) -> tuple[list[tuple[dict[str, Any], Settings]], tuple[str, ...]]:
    """The points that the sampler takes, and a sentence on each of the others."""
    points, skipped = [], []
    for named in grid.cells(task):
        given = {"block": task.block, "stop": stops(shape), **named}
        try:
            points.append((named, settings_for(shape, task.length, seed=seed, **given)))
        except UsageError as error:
            skipped.append(f"{', '.join(f'{key} {value}' for key, value in named.items())}: {error.what}")
    if not points:
        raise InputError("no point of the grid fits the sampler", hint=skipped[0])
    return points, tuple(skipped)


@dataclass
class _Runs:
    """Both models' texts at one settings after another, with the progress over all of them."""

    models: tuple[Denoiser, Denoiser]
    prompts: Sequence[Sequence[int]]
    progress: Progress
    total: int
    done: int = 0

    def both(self, settings: Settings) -> tuple[Trajectory, Trajectory]:
        first, second = (self._one(model, settings) for model in self.models)
        return first, second

    def _one(self, model: Denoiser, settings: Settings) -> Trajectory:
        run = denoise(model, self.prompts, settings, partial(self._show, self.done))
        self.done += len(self.prompts)
        return run

    def _show(self, before: int, done: int, _: int) -> None:
        self.progress.part("texts", before + done, self.total)


def _cell(
    named: dict[str, Any],
    settings: Settings,
    runs: tuple[Trajectory, Trajectory],
    reference: tuple[Trajectory, Trajectory],
    counted: Tensor,
    ends: Sequence[int],
) -> Cell:
    """counted: bool [items, length], the positions up to the reference's end of text."""
    before, after, full = (_changed(run, reference[0], counted) for run in (*runs, reference[1]))
    expected = 1 - (1 - before) * (1 - full)
    beyond = after - expected
    return Cell(
        settings=named,
        passes=float((runs[0].commit_step.amax(1) + 1).double().mean()),
        unquantized=float(before.mean()),
        quantized=float(after.mean()),
        expected=float(expected.mean()),
        beyond=float(beyond.mean()),
        interval=bootstrap(beyond.tolist()) if len(beyond) > 1 else None,
        flips=compare("", *runs, settings.steps, *ends),
    )


def _changed(run: Trajectory, reference: Trajectory, counted: Tensor) -> Tensor:
    """The share of each text's tokens that differ from the reference's; float64 [items]."""
    return ((run.tokens != reference.tokens) & counted).double().sum(1) / counted.double().sum(1)
