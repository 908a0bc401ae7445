"""The cells of the paper's tables (arXiv 2508.14896): a method at a bit width, each a recipe in recipes/paper."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from qspec import resources

METHODS = {
    "rtn": "RTN",
    "gptq": "GPTQ",
    "awq": "AWQ",
    "smoothquant": "SmoothQuant",
    "quarot": "QuaRot",
    "duquant": "DuQuant",
}
SETTINGS = ("w4a16", "w3a16", "w8a8", "w4a4")  # in the tables' order


@dataclass(frozen=True)
class Cell:
    """name: `quarot_w4a4`. Rounding to nearest is not in the paper; it is the floor under every method."""

    name: str
    method: str
    setting: str
    recipe: Path


def all_cells() -> tuple[Cell, ...]:
    """Every recipe of the folder that is a method at a setting, in the tables' order."""
    folder = resources.recipes() / "paper"
    return tuple(
        Cell(path.stem, METHODS[method], setting, path)
        for setting in SETTINGS
        for method in METHODS
        if (path := folder / f"{method}_{setting}.qs").is_file()
    )
