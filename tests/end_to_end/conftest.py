"""A checkpoint that compiles in seconds: two random blocks in LLaDA's layout, sharded, with tiny-llada's tokenizer."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from qspec import resources
from qspec.compiler import CompileOptions
from qspec.kernels.linear import QuantLinear
from qspec.kernels.merged import GatedPart, MergedPart
from qspec.models.decoder import Decoder
from qspec.models.llada import LLADA
from qspec.models.registry import family_of

NO_REPORT = CompileOptions(evaluate=False)
RECIPE = """\
qspec 1

recipe mini {{
  family llada
  model  "{model}"
}}

calibrate {{
  text    file("text.txt")
  samples 6
  length  48
  mask    uniform(0.0, 1.0)
  seed    3
}}

scheme w4a4 {{
  weights     int4 per channel symmetric clip mse
  activations int4 per token   symmetric clip 0.9
}}

scheme w8a8 {{
  weights     int8 per channel symmetric
  activations int8 per token   symmetric
}}

layers blocks[*].*         use w4a4
layers blocks[-1].mlp.down use w8a8
layers blocks[0].mlp.gate  keep

apply smooth(alpha = 0.6)                   on blocks[*].*
apply rotate_duquant(block = 32, steps = 8) on blocks[*].*
apply gptq()                                on blocks[*].*

evaluate {{
  nelbo on file("text.txt") samples 4
}}

emit {{
  kernels triton for sm_90
  regime  full_sequence
}}
"""

ONE_SCHEME = """\
qspec 1

recipe one_scheme {{
  family {family}
  model  "{model}"
}}

calibrate {{
  text    file("{text}")
  samples 6
  length  {length}
}}

scheme quantized {{
  {scheme}
}}

layers blocks[*].* use quantized
{rules}
apply {passes}

evaluate {{
  nelbo on file("{text}") samples 2
}}
"""
W4A16 = "weights int4 per group 32"
W8A8 = "weights int8 per channel\n  activations int8 per token"
W4A4 = "weights int4 per channel\n  activations int4 per token"
RTN = "rtn() on blocks[*].*"
GPTQ = "gptq() on blocks[*].*"
DUQUANT = f"rotate_duquant(block = 32, steps = 8) on blocks[*].*\napply {GPTQ}"
SMOOTH = "smooth(alpha = 0.6) on blocks[*].*"


@dataclass(frozen=True)
class Mini:
    """recipe: its file; model: the checkpoint's folder."""

    recipe: Path
    model: Path

    @property
    def text(self) -> Path:
        return self.recipe.with_name("text.txt")


def one_scheme(model: Path, text: Path, scheme: str, passes: str, *, rules: str = "", length: int = 32) -> Path:
    """The recipe beside a checkpoint's folder that gives every linear one scheme. passes: joined by "\\napply "."""
    family = family_of(json.loads((model / "config.json").read_text())).name
    parts = {"scheme": scheme, "passes": passes, "rules": rules, "length": length}
    path = model.with_name("recipe.qs")
    path.write_text(ONE_SCHEME.format(family=family, model=model, text=text, **parts))
    return path


@pytest.fixture(scope="session")
def mini(tmp_path_factory: pytest.TempPathFactory) -> Mini:
    folder = tmp_path_factory.mktemp("mini")
    model = folder / "model"
    model.mkdir()
    standin = resources.standin("llada")
    config = json.loads((standin / "config.json").read_text())
    config |= {"d_model": 64, "n_heads": 4, "n_kv_heads": 4, "mlp_hidden_size": 192, "n_layers": 2}
    config |= {"torch_dtype": "float32", "auto_map": {"AutoModel": "modeling_llada.LLaDAModelLM"}}
    config |= {"max_sequence_length": 64}
    (model / "config.json").write_text(json.dumps(config))
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        shutil.copy(standin / name, model / name)
    torch.manual_seed(0)
    tensors = {k: v.detach().bfloat16() for k, v in Decoder(LLADA, LLADA.shape(config)).state_dict().items()}
    names = sorted(tensors)
    half = len(names) // 2
    table = {}
    for i, part in enumerate((names[:half], names[half:]), 1):
        shard = f"model-{i:05d}-of-00002.safetensors"
        save_file({name: tensors[name].contiguous() for name in part}, model / shard)
        table |= dict.fromkeys(part, shard)
    (model / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": table}))
    (folder / "text.txt").write_text("The river of Biznia is the Koso. Tom has 3 books and buys 4 more. " * 40)
    recipe = folder / "mini.qs"
    recipe.write_text(RECIPE.format(model=model))
    return Mini(recipe, model)


def quantized_linears(model: torch.nn.Module) -> dict[str, QuantLinear]:
    """By the linear's own name what computes it: itself, or the product that it is a part of."""
    found = {name: m for name, m in model.named_modules() if not name.endswith(".whole")}
    parts = {name: m.whole for name, m in found.items() if isinstance(m, MergedPart | GatedPart)}
    return parts | {name: m for name, m in found.items() if isinstance(m, QuantLinear)}
