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
    by name, with the quantization of their inputs where there is one. layers: of everything by name. `BASE` is among
    both, the latter by torch's operations in bfloat16.
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
    layers: Mapping[str, float]

    def over(self, name: str) -> float:
        """How many times faster than another are both GEMMs; above 1 we are ahead."""
        return self.others[name] / self.whole

    def over_layer(self, name: str) -> float:
        """How many times faster than another is everything; above 1 we are ahead."""
        return self.layers[name] / self.layer

    @property
    def best_peer(self) -> str | None:
        """Of the others but the base the one that we are least ahead of."""
        return _best(self.others)

    @property
    def best_layer_peer(self) -> str | None:
        """The same of whole layers."""
        return _best(self.layers)

    @property
    def operations(self) -> int:
        """Multiplications and additions of the GEMMs."""
        size = MIXTURES[self.model]
        return 2 * self.tokens * size.chosen * 3 * size.width * size.inner


def _best(times: Mapping[str, float]) -> str | None:
    names = [name for name in times if name != BASE]
    return min(names, key=times.__getitem__) if names else None


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
    if any(cell.best_layer_peer for cell in run.cells):
        lines[-1] += " vLLM's times are of everything too: its fused_experts, and Marlin its fused_marlin_moe."
    for model in dict.fromkeys(cell.model for cell in run.cells):
        lines += ["", *_table(model, [cell for cell in run.cells if cell.model == model])]
    lines += [f"\n{name} did not run: {why}" for name, why in run.failed.items()]
    return "\n".join(lines) + "\n"


def _table(model: str, cells: Sequence[ExpertsCell]) -> list[str]:
    size = MIXTURES[model]
    peers = list(dict.fromkeys(name for cell in cells for name in cell.others))
    layers = list(dict.fromkeys(name for cell in cells for name in cell.layers if name != BASE))
    head = ["format", "tokens", "gate, up", "down", "both", "GB/s", "TFLOP/s", "over bf16", "over best peer"]
    head += ["layer", "layer bf16", "over it", "over best layer peer", *peers, *layers]
    lines = [
        f"**{model}**: {size.experts} experts of 3 x {size.inner} x {size.width}, {size.chosen} a token",
        "",
        f"| {' | '.join(head)} |",
        f"|{'---|' * len(head)}",
    ]
    for cell in cells:
        best, best_layer, gemms = cell.best_peer, cell.best_layer_peer, cell.gate_up + cell.down
        row = [cell.format, str(cell.tokens), *(f"{one:.1f}" for one in (cell.gate_up, cell.down, cell.whole))]
        row += [f"{cell.weight_bytes / gemms / 1e3:.0f}", f"{cell.operations / gemms / 1e6:.0f}"]
        row += [f"{cell.over(name):.2f}" if name in cell.others else "" for name in (BASE, best or "")]
        row += [f"{cell.layer:.1f}", *_times(cell.layers, [BASE])]
        row += [f"{cell.over_layer(name):.2f}" if name in cell.layers else "" for name in (BASE, best_layer or "")]
        row += [*_times(cell.others, peers), *_times(cell.layers, layers)]
        lines.append(f"| {' | '.join(row)} |")
    return lines


def _times(times: Mapping[str, float], names: Sequence[str]) -> list[str]:
    return [f"{times[name]:.1f}" if name in times else "" for name in names]
