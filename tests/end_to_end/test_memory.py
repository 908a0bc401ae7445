"""What the plan says of memory against the peak of a compile, each in a process of its own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from qspec import resources
from qspec.models.decoder import Decoder
from qspec.models.llada import LLADA
from qspec.models.sdar_moe import SDAR_MOE
from tests.models.expert_layout import TINY_SDAR_MOE

RECIPE = """\
qspec 1

recipe mem {{
  family {family}
  model  "{model}"
}}

calibrate {{
  text    file("text.txt")
  samples {rows}
  length  256
  weigh   {weigh}
}}

scheme w4 {{
  weights     int4 per channel symmetric
  activations none
}}

layers blocks[*].* use w4

apply {apply} on blocks[*].*
"""
# glibc gives back what is freed: the peak is of what is held, not of what the allocator keeps for later.
MALLOC = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"}
# The peak beyond that of a small model, by which everything is loaded; and what the plan says. VmHWM is of the program
# alone: a new process's ru_maxrss begins with the memory of the one that started it.
MEASURE = """\
import json, sys, torch
from pathlib import Path
from qspec.compiler import CompileOptions, compile
from qspec.plan.estimates import compile_memory
torch.set_num_threads(1)
peaks = []
for recipe in sys.argv[1:]:
    made = compile(recipe, out=recipe + ".out", device="cpu", options=CompileOptions(evaluate=False))
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    peaks.append(int(status["VmHWM"].split()[0]) * 1024)
print(json.dumps([peaks[1] - peaks[0], compile_memory(made.plan)]))
"""


@dataclass(frozen=True)
class Case:
    """A model of random blocks, calibration rows of 256 tokens, the pass and the weights of tokens of its recipe.

    experts: so many of the width `ffn` in each block, of which a token takes two.
    """

    width: int = 256
    ffn: int = 1024
    rows: int = 16
    layers: int = 1
    apply: str = "gptq()"
    weigh: str = "masked 1.0, unmasked 1.0"
    experts: int = 0


def recipe(folder: Path, case: Case) -> Path:
    model = folder / "model"
    model.mkdir(parents=True)
    standin = resources.standin("llada")
    config = json.loads((standin / "config.json").read_text())
    heads = max(1, case.width // 64)
    config |= {"d_model": case.width, "n_heads": heads, "n_kv_heads": heads}
    config |= {"mlp_hidden_size": case.ffn, "n_layers": case.layers}
    family = SDAR_MOE if case.experts else LLADA
    if case.experts:
        tokens = {key: config[key] for key in ("vocab_size", "mask_token_id", "eos_token_id", "pad_token_id")}
        config = TINY_SDAR_MOE | tokens | {"hidden_size": case.width, "head_dim": 64, "num_hidden_layers": case.layers}
        config |= {"num_experts": case.experts, "moe_intermediate_size": case.ffn, "max_position_embeddings": 512}
    (model / "config.json").write_text(json.dumps(config))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(standin / name, model)
    torch.manual_seed(0)
    tensors = Decoder(family, family.shape(config)).state_dict()
    save_file({name: t.to(torch.bfloat16).contiguous() for name, t in tensors.items()}, model / "model.safetensors")
    lines = [f"Tom has {i} boxes with {i % 7} eggs in each box." for i in range(3000)]
    (folder / "text.txt").write_text("\n".join(lines))
    path = folder / "mem.qs"
    named = {"family": family.name, "model": model, "rows": case.rows, "apply": case.apply, "weigh": case.weigh}
    path.write_text(RECIPE.format(**named))
    return path


def measured(folder: Path, case: Case) -> tuple[int, int]:
    """Bytes of the peak, and of the plan."""
    small, large = recipe(folder / "small", Case(64, 192, 1)), recipe(folder / "large", case)
    command = [sys.executable, "-c", MEASURE, str(small), str(large)]
    done = subprocess.run(command, env=os.environ | MALLOC, capture_output=True, text=True, check=True)
    peak, planned = json.loads(done.stdout.splitlines()[-1])
    return peak, planned


CASES = {
    "hessian": Case(ffn=3072),
    "width": Case(width=512, ffn=1536),
    "tokens": Case(rows=320),
    # In the first block the unquantized model's stream is the same tensor.
    "unquantized stream": Case(rows=320, layers=2, apply="gptaq()"),
    "whole model": Case(layers=48, apply="rtn()", weigh="certainty"),
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> tuple[int, int]:
    return measured(tmp_path_factory.mktemp("base"), Case())


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="/proc has the peak there")
@pytest.mark.parametrize("name", CASES)
def test_the_peak_of_a_compile_grows_as_planned(name: str, base: tuple[int, int], tmp_path: Path) -> None:
    """Each by itself, and all beside a fixed part: wider Hessians; a wider model; twenty times the calibration, alone
    and beside the unquantized model's; certainties of a model that is larger than a block's work."""
    peak, planned = measured(tmp_path, CASES[name])
    assert 0.8 < (peak - base[0]) / (planned - base[1]) < 1.25


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="/proc has the peak there")
def test_experts_take_the_memory_of_their_block(tmp_path: Path) -> None:
    """Sixteen times the experts take sixteen times a block, as planned, and four times the blocks take no more."""
    few, many, deep = (
        measured(tmp_path / name, Case(ffn=512, rows=4, experts=experts, layers=layers))
        for name, experts, layers in (("few", 4, 1), ("many", 64, 1), ("deep", 64, 4))
    )
    assert 0.75 < (many[0] - few[0]) / (many[1] - few[1]) < 1.25
    assert deep[0] < 1.1 * many[0]
