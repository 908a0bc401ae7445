"""examples/compile_cost: a checkpoint in the published layout, and one measurement of compiling it."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from qspec import runtime
from qspec.models.decoder import Decoder
from tests.models import dream_layout, layout

TOY = {
    "llada": {"d_model": 64, "n_heads": 4, "n_kv_heads": 4, "mlp_hidden_size": 96},
    "dream": {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 96},
}
VOCAB = {"llada": {"vocab_size": 620, "embedding_size": 620}, "dream": {"vocab_size": 620}}
TOKENS = {"mask_token_id": 2, "eos_token_id": 0, "pad_token_id": 1}  # tiny-llada's tokenizer has them there


@pytest.fixture
def measure(compile_cost: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The script at toy dimensions."""
    script: SimpleNamespace = compile_cost.measure
    toy = {name: whole | TOY[name] | VOCAB[name] | TOKENS for name, whole in script.DIMENSIONS.items()}
    monkeypatch.setattr(script, "DIMENSIONS", toy)
    return script


def test_the_dimensions_are_the_published_ones(compile_cost: SimpleNamespace) -> None:
    for family, published in (("llada", layout.LLADA_8B), ("dream", dream_layout.DREAM_7B)):
        ours = compile_cost.measure.DIMENSIONS[family]
        assert {key: published[key] for key in ours} == ours
        assert compile_cost.measure.LAYER_KEYS[family] not in ours


@pytest.mark.parametrize("family", ["llada", "dream"])
def test_the_checkpoint_has_the_published_layout(measure: SimpleNamespace, tmp_path: Path, family: str) -> None:
    measure.write_checkpoint(tmp_path, family, 3, "cpu")
    config = json.loads((tmp_path / "config.json").read_text())
    if family == "llada":
        wanted = layout.shapes(config)
    else:
        names = dream_layout.renamed(config)
        wanted = {names[name]: shape for name, shape in layout.shapes(dream_layout.as_llada(config)).items()}
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"]
    tensors = {}
    for file in set(index.values()):
        own = load_file(tmp_path / file)
        assert set(own) == {name for name, place in index.items() if place == file}
        tensors |= own
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == wanted
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    assert len(set(index.values())) == 3 + 1, "a shard for each block, one for the rest"
    for name, tensor in tensors.items():
        gain = tensor.ndim == 1 and name.endswith(".weight")
        assert float(tensor.float().mean()) == pytest.approx(1.0 if gain else 0.0, abs=0.02), name
        assert float(tensor.float().std()) == pytest.approx(0.02, rel=0.5), name
    model, _ = runtime.load(tmp_path, "cpu")
    assert isinstance(model, Decoder)
    assert torch.isfinite(model(torch.arange(3, 19)[None]).logits).all()


def test_one_measurement(measure: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Round to nearest at 8 bits a channel: 8 bits and a float32 scale for each row of 64, or of 96 for down."""
    source = tmp_path / "shipped" / "rtn.qs"
    source.parent.mkdir()
    source.write_text(
        'qspec 1\nrecipe rtn {\n  family llada, dream\n  model "x"\n}\n'
        'calibrate {\n  text "wikitext2"\n  samples 2\n  length 16\n}\n'
        "scheme w8a16 {\n  weights int8 per channel symmetric\n  activations none\n}\n"
        "layers blocks[*].* use w8a16\napply rtn() on blocks[*].*\n"
        "emit {\n  kernels triton for sm_90\n  regime full_sequence\n}\n"
    )
    model, out = tmp_path / "model", tmp_path / "out"
    measure.write_checkpoint(model, "llada", 2, "cpu")
    recipe = measure.recipe_for(source, tmp_path)
    found = measure.measure(recipe, model, out, "cpu")
    assert (found["recipe"], found["layers"], found["device"]) == ("rtn", 2, "cpu")
    # q, k, v, o: 4 x 64 rows of 64; gate, up: 2 x 96 rows of 64; down: 64 rows of 96
    weights, rows = 4 * 64 * 64 + 3 * 64 * 96, 4 * 64 + 2 * 96 + 64
    assert found["bits_per_weight"] == pytest.approx(8 + 32 * rows / weights, abs=5e-4)
    assert 0 < found["seconds_per_block"] < found["seconds"]
    assert found["host_peak_gib"] > 0
    assert found["gpu_peak_gib"] is None
    assert capsys.readouterr().out.count("block 2 of 2: ") == 1
