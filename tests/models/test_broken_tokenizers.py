"""A tokenizer.json that cannot be one is an error that names the file, whatever its library raises."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from qspec import resources, runtime
from qspec.errors import InputError
from qspec.runtime import load_tokenizer

WHOLE = json.loads((resources.standins() / "tiny-llada" / "tokenizer.json").read_text())
MODEL = WHOLE["model"]
BROKEN: dict[str, Any] = {
    "no object": None,
    "a list": [],
    "null model": WHOLE | {"model": None},
    "unknown model": WHOLE | {"model": {"type": "Unheard"}},
    "bad decoder": WHOLE | {"decoder": {"type": "Unheard"}},
    "bad normalizer": WHOLE | {"normalizer": [1]},
    "negative ids": WHOLE | {"model": MODEL | {"vocab": {word: -1 - id for word, id in MODEL["vocab"].items()}}},
    "huge ids": WHOLE | {"model": MODEL | {"vocab": {word: id << 40 for word, id in MODEL["vocab"].items()}}},
    "empty vocabulary": WHOLE | {"model": MODEL | {"vocab": {}, "merges": []}},
    "merges of other words": WHOLE | {"model": MODEL | {"vocab": {}}},
    "added tokens that are text": WHOLE | {"added_tokens": "x"},
    "an added token below 0": WHOLE | {"added_tokens": [{"id": -1, "content": "x", "special": True}]},
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    source = resources.standins() / "tiny-llada"
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(source / name, tmp_path / name)
    return tmp_path


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_tokenizer_is_one_error(folder: Path, name: str) -> None:
    (folder / "tokenizer.json").write_text(json.dumps(BROKEN[name]))
    with pytest.raises(InputError, match=r"the tokenizer (cannot be read|has no words)[\s\S]*tokenizer\.json"):
        load_tokenizer(folder)


def test_a_tokenizer_file_is_bounded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "MAX_BYTES", 100)
    with pytest.raises(InputError, match=r"tokenizer\.json has more than 100 bytes"):
        load_tokenizer(folder)
