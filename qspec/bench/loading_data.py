"""What loading a model takes: frozen values, their file and their table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from qspec.bench.data import own, read_runs

SHARE, FIXED = 1.2, 1.0  # a load is to take so many times the plain read, and so many seconds more


@dataclass(frozen=True)
class Loaded:
    """One model, in seconds.

    bytes: of its safetensors files. plain: reading these one after another into one buffer, from the page cache.
    imports: importing the tokenizer's library, in a new process whose GPU was touched. load: `qspec.load` behind that;
    fresh: `qspec.load` in a new process, which imports the library meanwhile. cold, warm: from there to the first step
    of a text, with Triton's cache empty and filled.
    """

    model: str
    bytes: int
    plain: float
    imports: float
    load: float
    fresh: float
    cold: float
    warm: float

    @property
    def wanted(self) -> float:
        return SHARE * self.plain + FIXED


@dataclass(frozen=True)
class Loading:
    """One run. environment: versions and names. cores: that its processes may use."""

    environment: Mapping[str, str]
    cores: int
    cells: tuple[Loaded, ...]

    def as_json(self) -> dict[str, object]:
        """Everything measured."""
        return asdict(self)


def read(paths: Sequence[Path]) -> Loading:
    """The runs of one GPU as one, from their load.json. Raises InputError where a file is none."""
    runs = read_runs(paths, _loading, "load.json", "qspec bench --load")
    return replace(runs[0], cells=tuple(cell for run in runs for cell in run.cells))


def _loading(data: dict[str, Any]) -> Loading:
    return Loading(data["environment"], data["cores"], tuple(Loaded(**own(Loaded, cell)) for cell in data["cells"]))


def markdown(run: Loading) -> str:
    """One table, a model a row."""
    head = [
        "model", "GB", "plain read", f"{SHARE:g} of it + {FIXED:g} s", "load", "import", "load with it",
        "first token, cold", "warm",
    ]  # fmt: skip
    where = ", ".join(f"{name} {run.environment[name]}" for name in ("torch", "triton"))
    lines = [
        f"{run.environment['gpu']}, {run.cores} CPU cores, {where}",
        "Seconds. Files in the page cache. Load: in a process that has imported transformers; import: of that, alone; "
        "load with it: in a new process, which imports it meanwhile.",
        "",
        f"| {' | '.join(head)} |",
        f"|{'---|' * len(head)}",
    ]
    for cell in run.cells:
        seconds = (cell.plain, cell.wanted, cell.load, cell.imports, cell.fresh, cell.cold, cell.warm)
        row = [cell.model, f"{cell.bytes / 1e9:.2f}", *(f"{value:.2f}" for value in seconds)]
        lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines) + "\n"
