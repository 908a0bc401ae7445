"""What grouped GEMMs of mixtures of experts take: frozen values, their file and their table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from qspec.bench.data import own, ran_on, read_runs


class Mixture(NamedTuple):
    """Experts of a layer, channels of the model and of one expert, and how many experts a token chooses."""

    experts: int
    width: int
    inner: int
    chosen: int


MIXTURES: Mapping[str, Mixture] = {
    "llada2-mini": Mixture(256, 2048, 512, 8),
    "sdar-30b": Mixture(128, 2048, 768, 8),
}
BASE = "torch bf16"  # torch._grouped_mm on rows that are sorted already; what ratios are over


@dataclass(frozen=True)
class ExpertsCell:
    """A layer's experts in one format, for tokens that choose at random.

    gate_up, down: microseconds of the grouped GEMMs. whole: of both with the quantization of their inputs. layer: of
    everything, with sorting and the weighted sum. weight_bytes: of the experts that were chosen. others: of both GEMMs
    by name, with the quantization of their inputs where there is one; `BASE` is among them. base_layer: of everything
    by torch's operations in bfloat16.
    """

    format: str
    model: str
    tokens: int
    gate_up: float
    down: float
    whole: float
    layer: float
    weight_bytes: int
    others: Mapping[str, float]
    base_layer: float

    def over(self, name: str) -> float:
        """How many times faster than another are both GEMMs; above 1 we are ahead."""
        return self.others[name] / self.whole

    @property
    def best_peer(self) -> str | None:
        """Of the others but the base the one that we are least ahead of."""
        names = [name for name in self.others if name != BASE]
        return min(names, key=self.over) if names else None

    @property
    def operations(self) -> int:
        """Multiplications and additions of the GEMMs."""
        size = MIXTURES[self.model]
        return 2 * self.tokens * size.chosen * 3 * size.width * size.inner


@dataclass(frozen=True)
class ExpertsRun:
    """One run. environment: versions and names. failed: peers that did not run, with their errors."""

    environment: Mapping[str, str]
    cells: tuple[ExpertsCell, ...]
    failed: Mapping[str, str]

    def as_json(self) -> dict[str, object]:
        """Everything measured."""
        return asdict(self)


def read(paths: Sequence[Path]) -> ExpertsRun:
    """The runs of one GPU as one, from their experts.json. Raises InputError where a file is none."""
    runs = read_runs(paths, _run, "experts.json", "qspec bench --experts")
    failed = {name: why for run in runs for name, why in run.failed.items()}
    return replace(runs[0], cells=tuple(cell for run in runs for cell in run.cells), failed=failed)


def _run(data: dict[str, Any]) -> ExpertsRun:
    cells = tuple(ExpertsCell(**own(ExpertsCell, cell)) for cell in data["cells"])
    return ExpertsRun(data["environment"], cells, data["failed"])


def markdown(run: ExpertsRun) -> str:
    """A table for each model."""
    lines = [
        ran_on(run.environment),
        "Microseconds, medians of CUDA graphs; tokens choose experts at random. `both`: gate and up, and down, with "
        "the quantization of their inputs, as peers have it; ratios are over it. "
        f"{BASE}: torch._grouped_mm on sorted rows. "
        "`layer`: everything, with sorting and the weighted sum, beside the same by torch's operations in bfloat16.",
    ]
    for model in dict.fromkeys(cell.model for cell in run.cells):
        lines += ["", *_table(model, [cell for cell in run.cells if cell.model == model])]
    lines += [f"\n{name} did not run: {why}" for name, why in run.failed.items()]
    return "\n".join(lines) + "\n"


def _table(model: str, cells: Sequence[ExpertsCell]) -> list[str]:
    size = MIXTURES[model]
    peers = list(dict.fromkeys(name for cell in cells for name in cell.others))
    head = ["format", "tokens", "gate, up", "down", "both", "GB/s", "TFLOP/s", "over bf16", "over best peer"]
    head += ["layer", "layer bf16", "over it", *peers]
    lines = [
        f"**{model}**: {size.experts} experts of 3 x {size.inner} x {size.width}, {size.chosen} a token",
        "",
        f"| {' | '.join(head)} |",
        f"|{'---|' * len(head)}",
    ]
    for cell in cells:
        best, gemms = cell.best_peer, cell.gate_up + cell.down
        row = [cell.format, str(cell.tokens), *(f"{one:.1f}" for one in (cell.gate_up, cell.down, cell.whole))]
        row += [f"{cell.weight_bytes / gemms / 1e3:.0f}", f"{cell.operations / gemms / 1e6:.0f}"]
        row += [f"{cell.over(name):.2f}" if name in cell.others else "" for name in (BASE, best or "")]
        row += [f"{cell.layer:.1f}", f"{cell.base_layer:.1f}", f"{cell.base_layer / cell.layer:.2f}"]
        row += [f"{cell.others[name]:.1f}" if name in cell.others else "" for name in peers]
        lines.append(f"| {' | '.join(row)} |")
    return lines
