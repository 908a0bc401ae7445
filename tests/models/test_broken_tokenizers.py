"""A tokenizer.json that cannot be one is an error that names the file, whatever its library raises."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from qspec import resources, runtime
from qspec.errors import InputError
from qspec.models.tokens import encode
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
    "a normalizer that panics": WHOLE | {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}},
    "merges that panic": WHOLE | {"model": MODEL | {"continuing_subword_prefix": "##"}},
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


FAILING: dict[str, Any] = {  # which load, and fail at a text
    "a panic": WHOLE | {"pre_tokenizer": {"type": "FixedLength", "length": 0}},
    "an exception": WHOLE
    | {
        "model": {"type": "Unigram", "unk_id": None, "vocab": [["a", -1.0], ["<|mask|>", -1.0]], "byte_fallback": False}
    },
}


@pytest.mark.parametrize("name", FAILING)
def test_a_tokenizer_that_fails_at_a_text_is_one_error(name: str) -> None:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(FAILING[name])))
    with pytest.raises(InputError, match="the tokenizer fails on a text: ") as caught:
        encode(tokenizer, "some words", 1000)
    assert caught.value.where == "'some words'"


def test_an_interruption_stays_one() -> None:
    class Stopped:
        def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        encode(Stopped(), "x", 10)


def test_a_tokenizer_file_is_bounded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "MAX_BYTES", 100)
    with pytest.raises(InputError, match=r"tokenizer\.json has more than 100 bytes"):
        load_tokenizer(folder)
