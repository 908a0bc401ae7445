"""Writes a stand-in's data/: calibration and held-out text, and three files of held-out task items.

python examples/tiny_llada/dataset.py --out DIR
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from corpus import documents, solved
from tasks import KINDS, Item, Kind, items, split_of

TRAINING_SEED, CALIBRATION_SEED, TASK_SEED, HELD_OUT_SEED = 1, 2, 3, 4
TASK_ITEMS, CALIBRATION_DOCUMENTS, HELD_OUT_DOCUMENTS = 128, 320, 128


def write_data(folder: Path) -> None:
    """All files of `folder`. Raises AssertionError where two splits meet."""
    folder.mkdir(parents=True, exist_ok=True)
    tasks = {kind.name: distinct(kind, TASK_SEED, TASK_ITEMS) for kind in KINDS}
    shown = {solved(item) for chosen in tasks.values() for item in chosen}
    calibration = list(_take(documents("train", CALIBRATION_SEED), CALIBRATION_DOCUMENTS, set()))
    held_out = list(_take(documents("heldout", HELD_OUT_SEED), HELD_OUT_DOCUMENTS, shown))
    _assert_disjoint(tasks, calibration, held_out)
    for name, chosen in tasks.items():
        _write(folder / f"{name}.jsonl", (_row(item) for item in chosen))
    _write(folder / "calibration.jsonl", ({"text": text} for text in calibration))
    _write(folder / "heldout.jsonl", ({"text": text} for text in held_out))


def distinct(kind: Kind, seed: int, count: int) -> list[Item]:
    """`count` held-out items of a kind with `count` different prompts."""
    found: dict[str, Item] = {}
    for item in items(kind, "heldout", seed):
        found.setdefault(item.prompt, item)
        if len(found) == count:
            break
    return list(found.values())


def training_items(kind: Kind, count: int) -> list[Item]:
    """The training pool of a kind."""
    return list(itertools.islice(items(kind, "train", TRAINING_SEED), count))


def training_documents(count: int) -> list[str]:
    return list(itertools.islice(documents("train", TRAINING_SEED), count))


def _take(source: Iterable[str], count: int, without: set[str]) -> Iterable[str]:
    """The first `count` different texts that are not in `without`."""
    seen = set(without)
    for text in source:
        if len(seen) == count + len(without):
            return
        if text not in seen:
            seen.add(text)
            yield text


def _assert_disjoint(tasks: Mapping[str, list[Item]], calibration: list[str], held_out: list[str]) -> None:
    chosen = [item for kind in tasks.values() for item in kind]
    assert all(split_of(item.key) == "heldout" for item in chosen), "a task item has a training key"
    texts = {solved(item) for item in chosen}
    assert not texts & set(calibration), "a task item is in the calibration text"
    assert not texts & set(held_out), "a task item is in the held-out text"
    assert not set(calibration) & set(held_out), "calibration and held-out text meet"


def _row(item: Item) -> dict[str, Any]:
    row: dict[str, Any] = {"prompt": item.prompt, "answer": item.answer}
    if item.choices:
        row["choices"] = list(item.choices)
    return row


def _write(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for the .jsonl files")
    write_data(parser.parse_args().out)
