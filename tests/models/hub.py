"""A folder as the hub has Dream-7B: a slow tokenizer class, its vocabulary, merges and added tokens."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from qspec import resources

SPECIAL = {"<|endoftext|>": 0, "<|pad|>": 1, "<|mask|>": 2}


def hub_folder(folder: Path) -> Path:
    """tiny-dream's vocabulary in the files that Dream-7B is published in, config.json beside them; no weights."""
    source = resources.standin("dream")
    folder.mkdir()
    shutil.copy(source / "config.json", folder)
    published = json.loads((source / "tokenizer.json").read_text())
    model = published["model"]
    vocab = {word: token for word, token in model["vocab"].items() if word not in SPECIAL}
    (folder / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in model["merges"]))
    (folder / "added_tokens.json").write_text(json.dumps(SPECIAL))
    (folder / "special_tokens_map.json").write_text(json.dumps({"mask_token": {"content": "<|mask|>"}}))
    options = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    config = {
        "add_bos_token": False,
        "add_prefix_space": False,
        "added_tokens_decoder": {str(token): {"content": text, **options} for text, token in SPECIAL.items()},
        "auto_map": {"AutoTokenizer": ["tokenization_dream.DreamTokenizer", None]},
        "bos_token": None,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|endoftext|>",
        "errors": "replace",
        "mask_token": "<|mask|>",
        "model_max_length": 131072,
        "pad_token": "<|pad|>",
        "split_special_tokens": False,
        "tokenizer_class": "DreamTokenizer",
        "unk_token": None,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder
