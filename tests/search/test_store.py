"""Kept results: what a search reads of an earlier one is a result, or is measured again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qspec.errors import InputError
from qspec.progress import Quiet
from qspec.search.jobs import Errors, Noise, Probe, Result, Trial, fits
from qspec.search.run import search
from qspec.search.space import ProbeTarget
from qspec.search.store import Store
from tests.search.conftest import Mini, search_recipe

DOWN, GATE = ProbeTarget(0, ("mlp.down",)), ProbeTarget(0, ("mlp.gate", "mlp.up"))
LOSS = {"mean": 0.5, "buckets": [0.5, None, None, None, 0.5]}
MEASURED = LOSS | {"rows": [0.25, 0.75]}
NAN, INF = float("nan"), float("inf")


def test_a_result_fits_its_job() -> None:
    assert fits(Probe(0, "w4", (DOWN, GATE)), {str(DOWN): LOSS, str(GATE): LOSS}, 2)
    assert fits(Noise(0, (DOWN,)), {str(DOWN): LOSS}, 2)
    assert fits(Errors(0, "w4", (DOWN,)), {str(DOWN): 0.1}, 2)
    assert fits(Trial((("blocks[0].mlp.down", "w4"),)), MEASURED, 2)


@pytest.mark.parametrize(
    "damaged",
    [
        {}, [], None, 3.0, LOSS, {str(DOWN): LOSS}, {str(DOWN): LOSS, "blocks[0].mlp.up": LOSS},
        *({str(DOWN): LOSS, str(GATE): one} for one in (
            None, {}, 0.5, {"mean": 0.5}, LOSS | {"mean": NAN}, LOSS | {"mean": None}, LOSS | {"mean": True},
            LOSS | {"buckets": [0.5]}, LOSS | {"buckets": [0.5, None, None, None, INF]}, LOSS | {"buckets": {}},
        )),
    ],
    ids=str,
)  # fmt: skip
def test_another_is_no_result_of_a_probe(damaged: Any) -> None:
    assert not fits(Probe(0, "w4", (DOWN, GATE)), damaged, 2)


@pytest.mark.parametrize(
    "rows",
    [[], [0.25], [0.25, 0.75, 0.5], [0.25, NAN], [0.25, None], [0.25, "0.75"], [0.25, [0.75]], {}, None],
    ids=str,
)
def test_another_is_no_result_of_a_trial(rows: Any) -> None:
    assert not fits(Trial((("blocks[0].mlp.down", "w4"),)), LOSS | {"rows": rows}, 2)


@pytest.mark.parametrize("text", ["", "{", "[1, 2]", "null", '"text"', "[" * 100_000, "\xff"], ids=repr)
def test_a_file_without_an_object_is_an_empty_result(text: str, tmp_path: Path) -> None:
    (tmp_path / "k.json").write_bytes(text.encode("latin-1"))
    assert Store(tmp_path).get("k") == {}
    assert Store(tmp_path).get("other") is None


def test_a_folder_in_a_results_place_is_named(tmp_path: Path) -> None:
    (tmp_path / "k.json").mkdir()
    with pytest.raises(InputError, match="cannot be read") as caught:
        Store(tmp_path).get("k")
    assert caught.value.where == str(tmp_path / "k.json")


class Noted(Quiet):
    """Keeps the notes."""

    def __init__(self) -> None:
        super().__init__()
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def empty(_: Result) -> str:
    return "{}"


def truncated(result: Result) -> str:
    return json.dumps(result)[:-9]


def not_a_number(result: Result) -> str:
    return json.dumps(result | {"rows": [NAN, *result["rows"][1:]]} if "rows" in result else dict.fromkeys(result, NAN))


def fewer_rows(result: Result) -> str:
    return json.dumps(result | {"rows": result["rows"][1:]} if "rows" in result else {})


def test_damaged_results_are_measured_again_with_a_note(
    mini: Mini, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The recipe is the same, byte for byte, and so are the files."""
    monkeypatch.chdir(tmp_path)
    recipe = search_recipe(mini, tmp_path, "offer w2, w4 on blocks[*].*\n  offer w4 on blocks[1].*\n  refine 3", "rtn")
    recipe.write_text(recipe.read_text().replace("  refine  12\n", ""))
    (found,) = search(recipe, device="cpu").found
    written = {path: path.read_bytes() for path in tmp_path.glob("build/search/*/**/*") if path.is_file()}
    results = sorted(path for path in written if path.parent.name == "results")
    damages: list[Callable[[Result], str]] = [empty, truncated, not_a_number, fewer_rows]
    for place, path in enumerate(results):
        path.write_text(damages[place % len(damages)](json.loads(written[path])))
    progress = Noted()
    (again,) = search(recipe, device="cpu", progress=progress).found
    assert again == found
    assert {path: path.read_bytes() for path in written} == written
    assert sorted(note for note in progress.notes if "damaged" in note) == [
        f"{path.relative_to(tmp_path)} is damaged: measured again" for path in results
    ]
    shutil.rmtree(tmp_path / "build")
