"""What compiling a model of real dimensions costs: seconds a block and peak memory, on random weights.

    python examples/compile_cost/measure.py --layers 32 recipes/paper/gptq_w4a16.qs recipes/paper/duquant_w4a4.qs

Writes a checkpoint with LLaDA-8B's dimensions (`--family dream`: Dream-7B's) and random weights, then runs the compiler
on it as `qspec compile RECIPE --model FOLDER --no-eval` does, with the recipe's own calibration (128 x 2048 tokens).
Random weights cost what trained ones do: no step of the compiler takes longer for some values than for others. The
result is one JSON line a recipe, on stdout and in OUT/cost.jsonl.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import save_file

import qspec
from qspec import resources
from qspec.compiler import CompileOptions
from qspec.models.registry import FAMILIES
from qspec.progress import Quiet

T = TypeVar("T")
DIMENSIONS: dict[str, dict[str, Any]] = {
    "llada": {
        "architectures": ["LLaDAModelLM"], "model_type": "llada", "d_model": 4096, "n_heads": 32, "n_kv_heads": 32,
        "mlp_hidden_size": 12288, "vocab_size": 126464, "embedding_size": 126464, "max_sequence_length": 4096,
        "rope_theta": 500000.0, "rms_norm_eps": 1e-5, "include_bias": False, "include_qkv_bias": False,
        "weight_tying": False, "activation_type": "silu", "block_type": "llama", "layer_norm_type": "rms",
        "mask_token_id": 126336, "eos_token_id": 126081, "pad_token_id": 126081,
    },
    "dream": {
        "architectures": ["DreamModel"], "model_type": "Dream", "hidden_size": 3584, "num_attention_heads": 28,
        "num_key_value_heads": 4, "intermediate_size": 18944, "vocab_size": 152064, "max_position_embeddings": 131072,
        "rope_theta": 1000000.0, "rms_norm_eps": 1e-6, "hidden_act": "silu", "tie_word_embeddings": False,
        "mask_token_id": 151666, "eos_token_id": 151643, "pad_token_id": 151643,
    },
}  # fmt: skip
LAYER_KEYS = {"llada": "n_layers", "dream": "num_hidden_layers"}
SPREAD = 0.02  # of the weights


class Timed(Quiet):
    """Keeps the seconds of every block."""

    def __init__(self) -> None:
        super().__init__()
        self.each: list[float] = []

    def blocks(self, blocks: Sequence[T]) -> Iterator[T]:
        for block in blocks:
            start = time.perf_counter()
            yield block
            self.each.append(time.perf_counter() - start)
            print(f"  block {len(self.each)} of {len(blocks)}: {self.each[-1]:.1f} s", flush=True)


def write_checkpoint(folder: Path, family: str, layers: int, device: str) -> None:
    """Random bfloat16 weights, a shard for each block, with the stand-in's tokenizer and text."""
    config = {**DIMENSIONS[family], LAYER_KEYS[family]: layers}
    layout = FAMILIES[family]
    prefix = f"{layout.blocks}."
    shards: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, shape in layout.tensors(layout.shape(config)).items():
        part = name.removeprefix(prefix).split(".")[0] if name.startswith(prefix) else "outer"
        shards.setdefault(f"model-{part}.safetensors", {})[name] = shape
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator(device).manual_seed(0)
    for file, shapes in shards.items():
        tensors = {}
        for name, shape in shapes.items():
            values = torch.randn(shape, generator=generator, device=device) * SPREAD
            gain = len(shape) == 1 and name.endswith("weight")
            tensors[name] = (1 + values if gain else values).to(torch.bfloat16).cpu()
        save_file(tensors, folder / file)
    table = {name: file for file, shapes in shards.items() for name in shapes}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": table}))
    (folder / "config.json").write_text(json.dumps(config))
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        shutil.copy(resources.standin("llada") / name, folder / name)


def recipe_for(source: Path, folder: Path) -> Path:
    """The recipe with the stand-in's text in place of a named data set, which need not be on this machine."""
    text = resources.standin("llada") / "data" / "calibration.jsonl"
    shutil.copy(text, folder / "text.jsonl")
    path = folder / source.name
    path.write_text(
        f'qspec 1\n\nextends "{Path(os.path.relpath(source, folder)).as_posix()}"\n\nrecipe {source.stem} {{\n}}\n\n'
        'calibrate {\n  text file("text.jsonl", field = "text")\n}\n'
    )
    return path


def measure(recipe: Path, model: Path, out: Path, device: str) -> dict[str, Any]:
    """Compiles once; seconds and peak memory."""
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    progress = Timed()
    start = time.perf_counter()
    artifact = qspec.compile(recipe, str(model), out, device, options=CompileOptions(evaluate=False), progress=progress)
    seconds = time.perf_counter() - start
    each = progress.each
    return {
        "recipe": recipe.stem,
        "layers": len(each),
        "seconds": round(seconds, 1),
        "seconds_per_block": round(sum(each) / len(each), 2),
        "seconds_first_block": round(each[0], 2),
        "gpu_peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 2) if device == "cuda" else None,
        "host_peak_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
        "bits_per_weight": round(artifact.manifest.bits_per_weight, 3),
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "torch": torch.__version__,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipes", nargs="+", type=Path)
    parser.add_argument("--family", choices=sorted(DIMENSIONS), default="llada")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, default=Path("build/compile_cost"))
    args = parser.parse_args()

    model = args.out / f"{args.family}-{args.layers}"
    start = time.perf_counter()
    write_checkpoint(model, args.family, args.layers, args.device)
    print(f"checkpoint written in {time.perf_counter() - start:.0f} s", flush=True)
    for source in args.recipes:
        found = measure(recipe_for(source, args.out), model, args.out / source.stem, args.device)
        line = json.dumps(found)
        print(line, flush=True)
        with (args.out / "cost.jsonl").open("a") as file:
            file.write(line + "\n")
        shutil.rmtree(args.out / source.stem)


if __name__ == "__main__":
    main()
