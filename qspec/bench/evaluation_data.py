"""What measuring a model takes: frozen values, their file and their tables.

The hours of a benchmark are its tokens (`qspec.effort.task_tokens`) by the tokens a second that go through the model
for a task of its shape.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from qspec.bench.data import own, ran_on, read_runs
from qspec.bench.generation_data import BF16
from qspec.effort import SIZES, task_tokens
from qspec.language.presets import PRESETS
from qspec.language.spec import TaskRequest

PAPER = frozenset(PRESETS) - {"openbookqa"}  # the ten tasks of arXiv 2508.14896


@dataclass(frozen=True)
class EvaluationCell:
    """Full batches of one task's shape, as `qspec eval` computes them.

    task: whose shape. rows, row: of a pass, and tokens of each, prompt and answer. length, steps: of a written answer
    as it is published; 0 and the number of draws where choices are rated. passes, seconds: what was timed, fewer than
    an evaluation takes. peak: bytes of GPU memory at most, of the models that an evaluation has loaded by then;
    planned: the same by the plan.
    """

    model: str
    recipe: str
    task: str
    rows: int
    row: int
    length: int
    steps: int
    passes: float
    seconds: float
    peak: int
    planned: int

    @property
    def pass_milliseconds(self) -> float:
        return self.seconds / self.passes * 1e3

    @property
    def through_per_second(self) -> float:
        """Tokens that go through the model, prompts in every pass."""
        return self.rows * self.row * self.passes / self.seconds

    @property
    def items_per_second(self) -> float:
        """Answers, one token a step; choices with all their draws."""
        return self.rows / (self.steps * self.seconds / self.passes)

    @property
    def tokens_per_second(self) -> float:
        """Tokens of answers written, or of all rows that are rated."""
        return self.items_per_second * (self.length or self.row * self.steps)


@dataclass(frozen=True)
class EvaluationRun:
    """environment: versions and names."""

    environment: Mapping[str, str]
    cells: tuple[EvaluationCell, ...]

    def as_json(self) -> dict[str, object]:
        """Everything measured."""
        return asdict(self)

    def over(self, cell: EvaluationCell) -> float | None:
        """How many times faster a cell is than bf16; None where that was not measured."""
        for other in self.cells:
            if (other.model, other.task, other.recipe) == (cell.model, cell.task, BF16):
                return cell.items_per_second / other.items_per_second
        return None


def read(paths: Sequence[Path]) -> EvaluationRun:
    """The runs of one GPU as one, from their evaluate.json. Raises InputError where a file is none."""
    runs = read_runs(paths, _run, "evaluate.json", "qspec bench --evaluate")
    return replace(runs[0], cells=tuple(cell for run in runs for cell in run.cells))


def _run(data: dict[str, Any]) -> EvaluationRun:
    cells = (EvaluationCell(**own(EvaluationCell, cell)) for cell in data["cells"])
    return EvaluationRun(data["environment"], tuple(cells))


def markdown(run: EvaluationRun) -> str:
    """A table for each model: milliseconds a pass, items and tokens a second, times faster than bf16, memory."""
    lines = [
        ran_on(run.environment),
        "What `qspec eval` computes, on random weights. tokens/s: of answers written, or of all rows that are rated.",
    ]
    head = ["task", "recipe", "rows x tokens", "ms a pass", "items/s", "tokens/s", "over bf16", "GB", "planned"]
    for model in dict.fromkeys(cell.model for cell in run.cells):
        lines += ["", f"**{model}**", "", f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
        own_cells = [cell for cell in run.cells if cell.model == model]
        lines += [f"| {' | '.join(_row(run, cell))} |" for cell in own_cells]
        lines += ["", *_hours(own_cells)]
    return "\n".join(lines) + "\n"


def _hours(cells: Sequence[EvaluationCell]) -> list[str]:
    """What whole benchmarks take of each recipe, as a table; nothing where a shape was not timed for all of them."""
    recipes = list(dict.fromkeys(cell.recipe for cell in cells))
    speed = {(cell.recipe, cell.task): cell.through_per_second for cell in cells}
    first = [cell for cell in cells if cell.recipe == recipes[0]]
    if len(speed) < len(recipes) * len(first) or not {0, 256} <= {cell.length for cell in first}:
        return []
    head = ["hours of a whole task", "like", "million tokens", *recipes]
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    total = dict.fromkeys(recipes, 0.0)
    for task, preset in PRESETS.items():
        size, length = SIZES[task], 0 if preset.rated else preset.length
        row = size.prompt + size.shot * preset.shots + (size.target if preset.rated else length)
        like = min((c for c in first if bool(c.length) == bool(length)), key=lambda cell: abs(cell.row - row)).task
        request = TaskRequest(task, shots=preset.shots, length=preset.length, steps=preset.steps)
        tokens = task_tokens(request, size)
        hours = {recipe: tokens / speed[recipe, like] / 3600 for recipe in recipes}
        if task in PAPER:
            total = {recipe: total[recipe] + hours[recipe] for recipe in recipes}
        lines.append(f"| {task} | {like} | {tokens / 1e6:.1f} | {' | '.join(f'{h:.2f}' for h in hours.values())} |")
    return [*lines, f"| the paper's ten | | | {' | '.join(f'{h:.1f}' for h in total.values())} |"]


def _row(run: EvaluationRun, cell: EvaluationCell) -> list[str]:
    ratio = run.over(cell)
    return [
        cell.task,
        cell.recipe,
        f"{cell.rows} x {cell.row}",
        f"{cell.pass_milliseconds:.1f}",
        f"{cell.items_per_second:.3g}",
        f"{cell.tokens_per_second:.0f}",
        "" if ratio is None else f"{ratio:.2f}",
        f"{cell.peak / 1e9:.1f}",
        f"{cell.planned / 1e9:.1f}",
    ]
