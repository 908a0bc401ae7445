"""Exact match on held-out items, by the family's own sampler with one token a step, T = 0.

python examples/standins/score.py qspec/standins/tiny-llada --rounding
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the repository, where qspec is not installed

from simulate import ROUNDINGS, calibration, rounded

from qspec.models.decoder import Decoder
from qspec.models.registry import family_of
from qspec.models.sampler import left_padded, sample, settings_for

Accuracy = dict[str, float]


@torch.inference_mode()
def complete(model: Decoder, prompts: list[list[int]], length: int, block: int) -> Tensor:
    """`length` tokens after each prompt, int64 [prompts, length], by the family's sampler, one token a step."""
    ids, real = left_padded(prompts, model.shape.pad_token)
    settings = settings_for(model.shape, length, block=block)
    return sample(model, ids, real, settings, captured=False)[:, ids.shape[1] :]


def exact_match(model: Decoder, tokenizer: Tokenizer, folder: Path, limit: int | None = None) -> Accuracy:
    """Share of items of each task whose text up to the first end-of-text token is the answer."""
    tasks = json.loads((folder / "standin.json").read_text(encoding="utf-8"))["tasks"]
    found = {}
    for task in tasks.values():
        rows = [json.loads(r) for r in (folder / task["file"]).read_text(encoding="utf-8").splitlines()][:limit]
        prompts = [tokenizer.encode(row["prompt"]).ids for row in rows]
        out = complete(model, prompts, task["length"], task["block"])
        texts = [_text(tokenizer, ids, model.shape.eos_token) for ids in out.tolist()]
        found[task["title"]] = sum(t == r["answer"] for t, r in zip(texts, rows, strict=True)) / len(rows)
    return found


def table(scores: dict[str, Accuracy]) -> str:
    """The scores as lines of text, in percent."""
    lines = []
    for label, accuracy in scores.items():
        cells = "  ".join(f"{kind} {100 * value:5.1f}" for kind, value in accuracy.items())
        lines.append(f"{label:<28}{cells}")
    return "\n".join(lines)


def load(folder: Path) -> tuple[Decoder, Tokenizer]:
    """A checkpoint folder's model in float32, and its tokenizer."""
    from safetensors.torch import load_file  # with numpy, which the training machine need not have

    settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    weights = {k: v.float() for f in sorted(folder.glob("*.safetensors")) for k, v in load_file(f).items()}
    family = family_of(settings)
    model = Decoder(family, family.shape(settings))
    model.load_state_dict(weights)
    return model.eval(), Tokenizer.from_file(str(folder / "tokenizer.json"))


def _text(tokenizer: Tokenizer, ids: list[int], eos: int) -> str:
    end = ids.index(eos) if eos in ids else len(ids)
    return tokenizer.decode(ids[:end], skip_special_tokens=True).strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--limit", type=int, help="items of each task")
    parser.add_argument("--rounding", action="store_true", help="also under simulated rounding")
    args = parser.parse_args()
    model, tokenizer = load(args.folder)
    print(table({"unquantized": exact_match(model, tokenizer, args.folder, args.limit)}), flush=True)
    ids = calibration(args.folder, tokenizer, model.shape.mask_token)
    for rounding in ROUNDINGS if args.rounding else ():
        score = exact_match(rounded(model, rounding, ids), tokenizer, args.folder, args.limit)
        print(table({rounding.label: score}), flush=True)


if __name__ == "__main__":
    main()
