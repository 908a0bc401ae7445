"""Checkpoints and texts in the forms in which people have them, through the commands."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

import qspec
from qspec.models.shards import INDEX, SINGLE, tensor_table
from tests.end_to_end.conftest import Mini

SHORT = """\
qspec 1

recipe short {{
  family llada
  model  "{model}"
}}

calibrate {{
  text    file("{text}")
  samples 4
  length  32
}}

scheme w8 {{
  weights int8 per channel symmetric
}}

layers blocks[*].*     use w8
layers head, embedding keep

apply rtn() on blocks[*].*
"""


def short(mini: Mini, folder: Path, model: Path | None = None) -> Path:
    """A recipe that compiles in a second: 8-bit weights, rounded to nearest."""
    recipe = folder / "short.qs"
    recipe.write_text(SHORT.format(model=model or mini.model, text=mini.recipe.with_name("text.txt")))
    return recipe


def single(mini: Mini, folder: Path, **config: object) -> Path:
    """The mini model's folder with its weights in one file and other keys in its config.json."""
    model = folder / "model"
    shutil.copytree(mini.model, model)
    tensors = {name: t for shard in sorted(model.glob("*.safetensors")) for name, t in load_file(shard).items()}
    for path in (*model.glob("*.safetensors"), model / INDEX):
        path.unlink()
    save_file(tensors, model / SINGLE)
    old = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(old | config))
    return model


def test_a_tied_model_with_its_head_stored_twice_compiles(mini: Mini, tmp_path: Path) -> None:
    model = single(mini, tmp_path, weight_tying=True)
    tensors = load_file(model / SINGLE)
    tensors["model.transformer.ff_out.weight"] = tensors["model.transformer.wte.weight"].clone()
    save_file(tensors, model / SINGLE)
    made = qspec.compile(short(mini, tmp_path, model), out=tmp_path / "out", device="cpu", evaluate=False)
    assert "model.transformer.ff_out.weight" not in tensor_table(made.path)
    ids = torch.arange(20)[None]
    found, wanted = (qspec.load(path, device="cpu")[0](ids).logits for path in (made.path, model))
    assert float((found - wanted).norm() / wanted.norm()) < 0.02  # int8
