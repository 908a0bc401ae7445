"""What the probes of a search cost on a model of real dimensions: seconds a block, on random weights.

    python examples/search/probe_cost.py --layers 6

Writes a checkpoint with LLaDA-8B's dimensions and random weights, as examples/compile_cost does, and probes each of the
seven linears of every block, alone, under four schemes with GPTQ: 28 probes a block. A probe runs the blocks behind its
own, so a block's seconds are a + b n, with n the blocks from it on; the line is fitted to the blocks measured, without
the first one, and summed over a model of 32.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from qspec.compiler import CompileOptions, read_recipe

sys.path.insert(0, str(Path(__file__).parents[1] / "compile_cost"))
from measure import write_checkpoint

from qspec.compiler import find_inputs
from qspec.search.engine import Engine
from qspec.search.jobs import Probe

FULL = 32  # blocks of LLaDA-8B
SCHEMES = {
    "w2": "int2 per group 64",
    "w3": "int3 per group 128",
    "w4": "int4 per group 128",
    "w8": "int8 per group 128",
}
RECIPE = """\
qspec 1
recipe probe_cost {{
  family llada
  model "{model}"
}}
calibrate {{
  text file("text.txt")
  samples {samples}
  length  {length}
}}
{schemes}
layers blocks[*].* use w4
apply gptq() on blocks[*].*
search {{
  offer w2, w3, w4, w8 on blocks[*].*
  fused false
  samples {rows}
  length  512
  draws   1
}}
"""


def write_recipe(folder: Path, model: Path, samples: int, length: int, rows: int) -> Path:
    schemes = "".join(f"scheme {name} {{\n weights {fmt} symmetric\n}}\n" for name, fmt in SCHEMES.items())
    (folder / "text.txt").write_text("The river of Biznia is the Koso. Tom has 3 books and buys 4 more. " * 2000)
    path = folder / "probe_cost.qs"
    path.write_text(RECIPE.format(model=model.resolve(), schemes=schemes, samples=samples, length=length, rows=rows))
    return path


def summed(each: list[float], layers: int = FULL) -> dict[str, float]:
    """The line through the blocks' seconds, and its sum over a whole model."""
    behind = np.arange(len(each), 0, -1)
    slope, intercept = np.polyfit(behind[1:], each[1:], 1)
    whole = layers * intercept + slope * layers * (layers + 1) / 2
    return {"a": round(intercept, 3), "b": round(slope, 4), "whole_model": round(whole, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--samples", type=int, default=16, help="calibration rows")
    parser.add_argument("--length", type=int, default=2048, help="tokens in each")
    parser.add_argument("--rows", type=int, default=16, help="rows of 512 tokens that the loss is measured on")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--out", type=Path, default=Path("build/probe_cost"))
    args = parser.parse_args()

    model = args.out / f"llada-{args.layers}"
    start = time.perf_counter()
    write_checkpoint(model, "llada", args.layers, args.device)
    print(f"checkpoint written in {time.perf_counter() - start:.0f} s", flush=True)
    recipe = write_recipe(args.out, model, args.samples, args.length, args.rows)
    start = time.perf_counter()
    engine = Engine(find_inputs(read_recipe(recipe), device=args.device, options=CompileOptions(evaluate=False)))
    result: dict[str, Any] = {"layers": args.layers, "setup": round(time.perf_counter() - start, 1)}
    print(f"model hashed and loaded, rows measured unquantized in {result['setup']} s", flush=True)
    targets = engine.space.targets()
    each = []
    for block in range(args.layers):
        own = tuple(target for target in targets if target.block == block)
        start = time.perf_counter()
        for scheme in SCHEMES:
            engine.run(Probe(block, scheme, own))
        each.append(time.perf_counter() - start)
        print(f"block {block}: {len(own) * len(SCHEMES)} probes in {each[-1]:.2f} s", flush=True)
        result["each"] = [round(seconds, 2) for seconds in each]
        if len(each) > 2:
            result |= summed(each)
    if args.device == "cuda":
        result["gpu_peak_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 2)
        result["device"] = torch.cuda.get_device_name()
    print(json.dumps(result))
    (args.out / "cost.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
