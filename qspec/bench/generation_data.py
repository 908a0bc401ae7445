"""What generating whole texts takes: frozen values, their file and their table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from qspec.bench.data import own, ran_on, read_runs

BF16 = "bf16"  # the unquantized model
Execution = Literal["published", "eager", "captured"]  # the loop of the model's publication; our sampler, or its graphs
OURS: tuple[Execution, ...] = ("eager", "captured")


@dataclass(frozen=True)
class GenerationCell:
    """Texts of one batch.

    recipe: or `BF16`. cache: "none", "prefix", "dual", or "exact" of a block-causal model. prompt, length: tokens of a
    row. steps: passes that commit tokens. seconds: of all passes. peak: bytes of GPU memory at most; planned: the same
    by the plan, of what is captured.
    """

    model: str
    recipe: str
    execution: Execution
    cache: str
    batch: int
    prompt: int
    length: int
    steps: int
    seconds: float
    peak: int
    planned: int | None

    @property
    def step_milliseconds(self) -> float:
        return self.seconds / self.steps * 1e3

    @property
    def tokens_per_second(self) -> float:
        return self.batch * self.length / self.seconds


@dataclass(frozen=True)
class Generation:
    """One run. environment: versions and names."""

    environment: Mapping[str, str]
    cells: tuple[GenerationCell, ...]

    def as_json(self) -> dict[str, object]:
        """Everything measured."""
        return asdict(self)

    def over(self, cell: GenerationCell, execution: Execution) -> float | None:
        """How many times faster a cell is than bf16 run so, on the same texts; None where that was not measured."""
        same = (cell.model, cell.cache, cell.batch, cell.prompt, cell.length, cell.steps)
        for other in self.cells:
            found = (other.model, other.cache, other.batch, other.prompt, other.length, other.steps)
            if found == same and (other.recipe, other.execution) == (BF16, execution):
                return other.seconds / cell.seconds
        return None


def read(paths: Sequence[Path]) -> Generation:
    """The runs of one GPU as one, from their generate.json. Raises InputError where a file is none."""
    runs = read_runs(paths, _generation, "generate.json", "qspec bench --generate")
    return replace(runs[0], cells=tuple(cell for run in runs for cell in run.cells))


def _generation(data: dict[str, Any]) -> Generation:
    return Generation(data["environment"], tuple(GenerationCell(**own(GenerationCell, cell)) for cell in data["cells"]))


def markdown(run: Generation) -> str:
    """A table for each model: milliseconds a step, tokens a second, times faster than bf16 run in each way."""
    lines = [
        ran_on(run.environment),
        "Whole texts, random weights. published: the loop of the model's publication, eager, in torch's operations; "
        "eager: our sampler and kernels; captured: its steps as CUDA graphs.",
    ]
    head = [
        "recipe",
        "run",
        "cache",
        "batch",
        "ms a step",
        "tokens/s",
        *(f"over {execution} bf16" for execution in get_args(Execution)),
        "GB",
        "planned",
    ]
    for model in dict.fromkeys(cell.model for cell in run.cells):
        cells = [cell for cell in run.cells if cell.model == model]
        sizes = dict.fromkeys((cell.prompt, cell.length, cell.steps) for cell in cells)
        for prompt, length, steps in sizes:
            lines += ["", f"**{model}**, prompt {prompt}, {length} tokens in {steps} steps", ""]
            lines += [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
            own_cells = (c for c in cells if (c.prompt, c.length, c.steps) == (prompt, length, steps))
            lines += [f"| {' | '.join(_row(run, cell))} |" for cell in own_cells]
    return "\n".join(lines) + "\n"


def _row(run: Generation, cell: GenerationCell) -> list[str]:
    ratios = [run.over(cell, execution) for execution in get_args(Execution)]
    return [
        cell.recipe,
        cell.execution,
        cell.cache,
        str(cell.batch),
        f"{cell.step_milliseconds:.2f}",
        f"{cell.tokens_per_second:.0f}",
        *("" if ratio is None else f"{ratio:.2f}" for ratio in ratios),
        f"{cell.peak / 1e9:.1f}",
        "" if cell.planned is None else f"{cell.planned / 1e9:.1f}",
    ]
