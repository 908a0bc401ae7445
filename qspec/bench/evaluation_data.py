"""What measuring a model takes: frozen values, their file and their table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from qspec.bench.data import own, read_runs
from qspec.bench.generation_data import BF16


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
        f"{run.environment['gpu']}, " + ", ".join(f"{name} {run.environment[name]}" for name in ("torch", "triton")),
        "What `qspec eval` computes, on random weights. tokens/s: of answers written, or of all rows that are rated.",
    ]
    head = ["task", "recipe", "rows x tokens", "ms a pass", "items/s", "tokens/s", "over bf16", "GB", "planned"]
    for model in dict.fromkeys(cell.model for cell in run.cells):
        lines += ["", f"**{model}**", "", f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
        lines += [f"| {' | '.join(_row(run, cell))} |" for cell in run.cells if cell.model == model]
    return "\n".join(lines) + "\n"


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
