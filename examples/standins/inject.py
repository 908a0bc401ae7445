"""Puts outliers into a trained checkpoint and writes the stand-in's folder, on a CPU, in seconds.

    python examples/standins/inject.py --model DIR --out qspec/standins/tiny-llada

DIR is what train.py wrote. Retuning the outliers needs no training: run this again with other sizes.
"""

from __future__ import annotations

import argparse
import copy
import json
import shutil
import sys
from dataclasses import fields, replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the repository, where qspec is not installed

from outliers import Sizes, inject, make_room
from score import load
from simulate import calibration

from qspec.models.decoder import Decoder

GROUPED = Sizes(20, 5, 10, 8, 60, 28)  # four query heads show each twin of o's input, narrower rotations spread them
SIZES = {
    "llada": Sizes(28, 3, 40, 12, 60, 8),
    "dream": GROUPED,
    "fast_dllm": GROUPED,
    "sdar_moe": Sizes(
        28, 3, 40, 12, 24, 8
    ),  # an expert is as wide as one rotation, which spreads over no more channels
}
SHARDS = 2
COPIED = ("config.json", "generation_config.json", "standin.json")
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


def write_shards(folder: Path, weights: dict[str, Tensor]) -> None:
    """bf16 safetensors in two shards of about the same size, with the index."""
    total = sum(w.numel() for w in weights.values()) * 2
    shards: list[dict[str, Tensor]] = [{} for _ in range(SHARDS)]
    done = 0
    for name, w in weights.items():
        shards[min(SHARDS - 1, done * SHARDS // total)][name] = w.to(torch.bfloat16).contiguous()
        done += w.numel() * 2
    where = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{SHARDS:05d}.safetensors"
        save_file(shard, folder / file, metadata={"format": "pt"})
        (folder / file).chmod(0o644)
        where.update(dict.fromkeys(shard, file))
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(where.items()))}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def difference(one: Decoder, other: Decoder, ids: Tensor) -> float:
    """|logits - logits'| / |logits| in float32."""
    with torch.inference_mode():
        before, after = one(ids).logits, other(ids).logits
    return float((after - before).norm() / before.norm())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, help="what train.py wrote")
    parser.add_argument("--out", type=Path, required=True, help="the stand-in's folder")
    for name, inputs in (("normal", "q, k, v and gate, up"), ("mixed", "o"), ("massive", "down")):
        parser.add_argument(f"--{name}", type=float, help=f"inputs of {inputs}: value over the rms")
        parser.add_argument(f"--{name}-column", type=float, help="columns that read them: size over the row's rms")
    args = parser.parse_args()

    model, tokenizer = load(args.model)
    ids = calibration(args.model, tokenizer, model.shape.mask_token)
    trained = copy.deepcopy(model)
    given = {size.name: getattr(args, size.name) for size in fields(Sizes)}
    sizes = replace(SIZES[model.family.name], **{name: value for name, value in given.items() if value is not None})
    room = make_room(model, ids)
    plain = copy.deepcopy(model)
    inject(model, ids, room, sizes)
    print(f"logits moved by {difference(trained, plain, ids):.1e}, relative, where room was made")
    print(f"logits moved by {difference(plain, model, ids):.1e}, relative, where outliers were put in")

    args.out.mkdir(parents=True, exist_ok=True)
    for name in (*COPIED, *TOKENIZER):
        shutil.copyfile(args.model / name, args.out / name)
    shutil.copytree(args.model / "data", args.out / "data", dirs_exist_ok=True)
    write_shards(args.out, model.state_dict())


if __name__ == "__main__":
    main()
