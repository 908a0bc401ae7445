"""Evaluations that are killed and started again: they end with the numbers of one that was not."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from qspec.data import DataSources
from qspec.evaluate import likelihood, measure, nelbo, tasks
from qspec.evaluate.forward import batches
from qspec.evaluate.kept import KeptBatches
from qspec.evaluate.results import Measurements
from tests.evaluate.models import Characters, Known, oracle
from tests.evaluate.test_measure import ANSWERS, REQUEST, standin

__all__ = ["standin"]

SECOND = ANSWERS | {"2+1=": "2", "blue ": "a"}


class Killed(BaseException):
    """As a signal ends a process: nobody handles it."""


@pytest.fixture(autouse=True)
def _small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    small = partial(batches, tokens=24)
    monkeypatch.setattr(nelbo, "batches", small)
    monkeypatch.setattr(likelihood, "batches", small)
    monkeypatch.setattr(tasks, "BATCH_TOKENS", 8)


def mortal(answers: dict[str, str], alive: Callable[[], bool]) -> Known:
    """A model that is killed in the middle of a pass."""
    plain = oracle(answers)

    def logits(ids: Tensor, mask: Tensor) -> Tensor:
        if not alive():
            raise Killed
        return plain.logits(ids, mask)

    return Known(logits)


def run(standin: Path, keep: Path | None, passes: int | None = None, owner: str = "a") -> tuple[Measurements, int]:
    """An evaluation of two models, killed after so many passes; and how many passes it took."""
    count = 0

    def alive() -> bool:
        nonlocal count
        count += 1
        return passes is None or count <= passes

    models: tuple[Any, Any] = (mortal(ANSWERS, alive), mortal(SECOND, alive))
    if keep is not None:
        store = KeptBatches(keep, owner)
        models = (store.of(models[0], "unquantized"), store.of(models[1], "quantized"))
    found = measure(*models, Characters(), REQUEST, DataSources(standin, standin, {}), 3)
    return found, count


def numbers(found: Measurements) -> dict[str, Any]:
    content = found.as_json()
    del content["timings"], content["speed"]
    return content


def test_killed_anywhere_and_started_again_the_numbers_are_the_same(standin: Path, tmp_path: Path) -> None:
    whole, needed = run(standin, None)
    generator, kept = random.Random(0), tmp_path / "kept"
    assert needed > 30
    done, kills = None, 0
    while done is None:
        try:
            done, last = run(standin, kept, generator.randrange(1, 6))
        except Killed:
            kills += 1
    assert kills >= 10
    assert last < needed / 2  # the last run had little left to do
    assert numbers(done) == numbers(whole)


def test_a_finished_evaluation_computes_nothing_again(standin: Path, tmp_path: Path) -> None:
    first, _ = run(standin, tmp_path / "kept")
    again, passes = run(standin, tmp_path / "kept", passes=0)
    assert passes == 0
    assert numbers(again) == numbers(first)


def test_another_artifacts_batches_are_not_taken(standin: Path, tmp_path: Path) -> None:
    run(standin, tmp_path / "kept")
    with pytest.raises(Killed):
        run(standin, tmp_path / "kept", passes=0, owner="b")


@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda _: b"", lambda _: b"{}" * 9])
def test_a_damaged_batch_is_computed_again(standin: Path, tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    first, needed = run(standin, tmp_path / "kept")
    for path in (tmp_path / "kept").iterdir():
        path.write_bytes(damage(path.read_bytes()))
    again, passes = run(standin, tmp_path / "kept")
    assert passes == needed
    assert numbers(again) == numbers(first)


def test_the_two_models_batches_are_told_apart(tmp_path: Path) -> None:
    store, ids = KeptBatches(tmp_path / "kept", "a"), torch.tensor([[1, 2]])
    one, other = store.of(oracle({}), "unquantized"), store.of(oracle({}), "quantized")
    assert one.computed("x", (ids,), lambda _: (ids,))[0].tolist() == [[1, 2]]
    assert other.computed("x", (ids,), lambda _: (ids + 1,))[0].tolist() == [[2, 3]]
    assert one.computed("x", (ids,), lambda _: (ids + 2,))[0].tolist() == [[1, 2]]
    assert one.computed("y", (ids,), lambda _: (ids + 3,))[0].tolist() == [[4, 5]]
