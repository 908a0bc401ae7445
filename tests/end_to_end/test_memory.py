"""What the plan says of memory against the peak of a compile, each in a process of its own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from qspec import resources
from qspec.models.decoder import Decoder
from qspec.models.llada import LLADA

RECIPE = """\
qspec 1

recipe mem {{
  family llada
  model  "{model}"
}}

calibrate {{
  text    file("text.txt")
  samples {rows}
  length  256
}}

scheme w4 {{
  weights     int4 per channel symmetric
  activations none
}}

layers blocks[*].* use w4

apply gptq() on blocks[*].*
"""
# glibc gives back what is freed: the peak is of what is held, not of what the allocator keeps for later.
MALLOC = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"}
# The peak beyond that of a small model, by which everything is loaded; and what the plan says.
MEASURE = """\
import json, resource, sys, torch
from qspec.compiler import CompileOptions, compile
from qspec.plan.estimates import compile_memory
torch.set_num_threads(1)
peaks = []
for recipe in sys.argv[1:]:
    made = compile(recipe, out=recipe + ".out", device="cpu", options=CompileOptions(evaluate=False))
    peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
print(json.dumps([peaks[1] - peaks[0], compile_memory(made.plan)]))
"""


def recipe(folder: Path, width: int, ffn: int, rows: int) -> Path:
    """With a model of one block of random weights."""
    model = folder / "model"
    model.mkdir(parents=True)
    standin = resources.standin("llada")
    config = json.loads((standin / "config.json").read_text())
    heads = max(1, width // 64)
    config |= {"d_model": width, "n_heads": heads, "n_kv_heads": heads, "mlp_hidden_size": ffn, "n_layers": 1}
    (model / "config.json").write_text(json.dumps(config))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(standin / name, model)
    torch.manual_seed(0)
    tensors = Decoder(LLADA, LLADA.shape(config)).state_dict()
    save_file({name: t.to(torch.bfloat16).contiguous() for name, t in tensors.items()}, model / "model.safetensors")
    lines = [f"Tom has {i} boxes with {i % 7} eggs in each box." for i in range(3000)]
    (folder / "text.txt").write_text("\n".join(lines))
    path = folder / "mem.qs"
    path.write_text(RECIPE.format(model=model, rows=rows))
    return path


def measured(folder: Path, width: int, ffn: int, rows: int) -> tuple[int, int]:
    """Bytes of the peak, and of the plan."""
    small, large = recipe(folder / "small", 64, 192, 1), recipe(folder / "large", width, ffn, rows)
    command = [sys.executable, "-c", MEASURE, str(small), str(large)]
    done = subprocess.run(command, env=os.environ | MALLOC, capture_output=True, text=True, check=True)
    peak, planned = json.loads(done.stdout.splitlines()[-1])
    return peak, planned


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss counts kilobytes there")
def test_the_peak_of_a_compile_grows_as_planned(tmp_path: Path) -> None:
    """Wider Hessians; a wider model; ten times the calibration: each by itself, and all beside a fixed part."""
    base = measured(tmp_path / "base", 256, 1024, 16)
    for name, size in (("hessian", (256, 3072, 16)), ("width", (512, 1536, 16)), ("tokens", (256, 1024, 320))):
        peak, planned = measured(tmp_path / name, *size)
        assert 0.8 < (peak - base[0]) / (planned - base[1]) < 1.25, name
