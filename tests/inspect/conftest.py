"""Random checkpoints in LLaDA's layout, small and with a tokenizer, with or without planted outliers."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from qspec import resources
from tests.models.layout import TINY, Array, random_weights, write_checkpoint

CONFIG = TINY | {"vocab_size": 600, "embedding_size": 640, "mask_token_id": 2}
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
BLOCK = "model.transformer.blocks"

Change = Callable[[dict[str, Array]], None]


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("The river of Biznia is the Koso. Tom has 3 books and buys 4 more. " * 20)
    return path


def checkpoint(folder: Path, change: Change | None = None) -> Path:
    """A folder with two random blocks, after `change` was made to its weights."""
    weights = random_weights(CONFIG)
    if change is not None:
        change(weights)
    write_checkpoint(folder, CONFIG, weights, shards=2)
    for name in TOKENIZER:
        shutil.copy(resources.standin("llada") / name, folder / name)
    return folder


@pytest.fixture(scope="session")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint(tmp_path_factory.mktemp("models") / "plain")
