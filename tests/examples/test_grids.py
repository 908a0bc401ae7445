"""examples/grids: both grids of a random layer and of a stand-in, and the table of them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from qspec.formats import NUMBER_FORMATS
from tests.examples.conftest import scripts


@pytest.fixture(scope="module")
def grids() -> Iterator[SimpleNamespace]:
    with scripts("grids", "measure") as found:
        yield found


def test_half_a_step_more_serves_low_bits_on_a_random_layer(grids: SimpleNamespace) -> None:
    """At 4 bits and fewer the output error falls; at 8 bits not even by a hundredth."""
    tools = grids.measure
    for method, bits, least in (("rtn", 2, 1.05), ("rtn", 3, 1.05), ("rtn", 4, 1.02), ("gptq", 3, 1.05)):
        cell = tools.Cell(tools.RANDOM, "weights", method, bits, None, "none")
        old, new = (tools.of_random_layer(cell, grid)["error"] for grid in tools.GRIDS)
        assert old / new > least, cell
    cell = tools.Cell(tools.RANDOM, "weights", "rtn", 8, 128, "none")
    old, new = (tools.of_random_layer(cell, grid)["error"] for grid in tools.GRIDS)
    assert old / new < 1.01


@pytest.mark.slow
def test_the_table_and_its_figures(grids: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command, for one cell of a stand-in and one of the random layer."""
    tools = grids.measure
    chosen = [tools.Cell(model, "weights", "rtn", 8, None, "none") for model in ("tiny-llada", tools.RANDOM)]
    monkeypatch.setattr(tools, "cells", lambda *_: chosen)
    shown: list[str] = []
    tools.main(["layers", "--samples", "1", "--out", str(tmp_path)], shown.append)
    rows = json.loads((tmp_path / "layers.json").read_text())
    assert [(row["model"], row["grid"]) for row in rows] == [
        (model, grid) for model in ("tiny-llada", tools.RANDOM) for grid in ("qmax", "half")
    ]
    assert (tmp_path / "layers.md").read_text() == shown[0]
    lines = shown[0].splitlines()
    assert len(lines) == 4
    old, new = rows[0], rows[1]
    assert 0 < new["kl"] < 0.1
    assert lines[2] == (
        f"| tiny-llada | weights | rtn | 8 | row | none | {old['error']:.4f} | {new['error']:.4f} "
        f"| {old['error'] / new['error']:.3f} | {old['kl']:.4f} | {new['kl']:.4f} | {old['kl'] / new['kl']:.3f} |"
    )


def test_the_old_table_of_formats_is_qmax(grids: SimpleNamespace) -> None:
    tools = grids.measure
    for bits in range(2, 9):
        number = NUMBER_FORMATS[f"int{bits}"]
        assert tools.on_grid(number, "qmax").reach == number.qmax
        assert tools.on_grid(number, "half").reach == (number.qmax + 0.5) * 1023 / 1024
    assert tools.on_grid(NUMBER_FORMATS["mxfp4"], "qmax").reach == 8
    assert tools.on_grid(NUMBER_FORMATS["uint4"], "half") == NUMBER_FORMATS["uint4"]


def test_every_shipped_recipe_is_measured(grids: SimpleNamespace) -> None:
    found = grids.measure.recipes(["tiny-llada", "tiny-dream"])
    assert ("llada_w4a4.qs", "tiny-llada") in found
    assert ("llada_w4a4.qs", "tiny-dream") not in found
    assert ("paper/gptq_w3a16.qs", "tiny-dream") in found
    assert not any("setup" in name for name, _ in found)


def test_seeds_are_averaged(grids: SimpleNamespace) -> None:
    rows = [
        {"recipe": "r", "model": "m", "seed": seed, "grid": grid, "kl": kl}
        for grid, seed, kl in (("qmax", 0, 2.0), ("qmax", 1, 4.0), ("half", 0, 1.0), ("half", 1, 2.0))
    ]
    assert grids.measure.table(rows, ["recipe", "model"], ["kl"]).splitlines()[2:] == [
        "| r | m | 3.0000 | 1.5000 | 2.000 |"
    ]
