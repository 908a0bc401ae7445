"""A byte-level BPE of a few hundred tokens: single digits and brackets, so that arithmetic and nesting stay visible.

Every byte is a token, so any text makes the round trip.

    python examples/tiny_llada/vocabulary.py --out DIR
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from dataset import training_documents
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

VOCABULARY, EMBEDDING_ROWS = 600, 640  # the embedding has spare rows, as LLaDA's may have
EOS, PAD, MASK = "<|endoftext|>", "<|pad|>", "<|mask|>"
MAX_LENGTH = 256
DOCUMENTS = 20000


def build_tokenizer() -> Tokenizer:
    """Trained on documents of the training split; the same every time."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"[()\[\]{}]"), "isolated"),
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[EOS, PAD, MASK],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(training_documents(DOCUMENTS), trainer)
    return tokenizer


def write_tokenizer(folder: Path) -> Tokenizer:
    """tokenizer.json and the two files by which transformers finds it."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = build_tokenizer()
    tokenizer.save(str(folder / "tokenizer.json"))
    special = {"eos_token": EOS, "pad_token": PAD, "mask_token": MASK}
    settings = {
        **special,
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": MAX_LENGTH,
        "clean_up_tokenization_spaces": False,
        "padding_side": "left",
    }
    _write(folder / "special_tokens_map.json", special)
    _write(folder / "tokenizer_config.json", settings)
    return tokenizer


def _write(path: Path, value: dict[str, object]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for the tokenizer's files")
    write_tokenizer(parser.parse_args().out)
