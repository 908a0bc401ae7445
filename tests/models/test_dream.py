"""Dream's config, published layout and forward pass, each against a table or equations of its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM

import qspec.models.hf as hf
from qspec.cli import main
from qspec.errors import InputError
from qspec.models.checkpoint import load_decoder
from qspec.models.decoder import Decoder
from qspec.models.dream import DREAM
from qspec.models.registry import FAMILIES, family_of
from tests.models.dream_layout import DREAM_7B, TINY_DREAM, forward, random_weights
from tests.models.layout import write_checkpoint


def test_dream_7b_has_the_published_tensors() -> None:
    """28 layers, width 3584, 28 heads and 4 of keys and values of 128, FFN 18944, 152064 rows; 7.6 B parameters."""
    expected: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (152064, 3584),
        "model.norm.weight": (3584,),
        "lm_head.weight": (152064, 3584),
    }
    for n in range(28):
        block = f"model.layers.{n}"
        expected |= {
            f"{block}.input_layernorm.weight": (3584,),
            f"{block}.self_attn.q_proj.weight": (3584, 3584),
            f"{block}.self_attn.q_proj.bias": (3584,),
            f"{block}.self_attn.k_proj.weight": (512, 3584),
            f"{block}.self_attn.k_proj.bias": (512,),
            f"{block}.self_attn.v_proj.weight": (512, 3584),
            f"{block}.self_attn.v_proj.bias": (512,),
            f"{block}.self_attn.o_proj.weight": (3584, 3584),
            f"{block}.post_attention_layernorm.weight": (3584,),
            f"{block}.mlp.gate_proj.weight": (18944, 3584),
            f"{block}.mlp.up_proj.weight": (18944, 3584),
            f"{block}.mlp.down_proj.weight": (3584, 18944),
        }
    shape = DREAM.shape(DREAM_7B)
    decoder = Decoder(DREAM, shape, device="meta", dtype=torch.bfloat16)
    assert {name: tuple(t.shape) for name, t in decoder.state_dict().items()} == expected
    assert DREAM.tensors(shape) == expected
    assert sum(t.numel() for t in decoder.state_dict().values()) == 7_615_616_512
    assert (shape.shift, shape.sampler, shape.head_width) == (True, "dream", 128)
    assert (shape.mask_token, shape.eos_token, shape.pad_token) == (151666, 151643, 151643)


@pytest.mark.parametrize("padding", [0, 3])
def test_logits_equal_the_equations_in_float64(padding: int) -> None:
    """Grouped queries and biases; the model's own logits are not moved, as published."""
    weights = random_weights(TINY_DREAM, seed=2)
    decoder = Decoder(DREAM, DREAM.shape(TINY_DREAM), dtype=torch.float64)
    decoder.load_state_dict({name: torch.from_numpy(w) for name, w in weights.items()})
    ids = np.random.default_rng(1).integers(0, 50, 11)
    mask = np.array([0] * padding + [1] * (11 - padding))
    with torch.no_grad():
        found = decoder(torch.from_numpy(ids)[None], torch.from_numpy(mask)[None]).logits[0, padding:].numpy()
    expected = forward(TINY_DREAM, weights, ids, mask)
    assert np.linalg.norm(found - expected) < 1e-6 * np.linalg.norm(expected)  # rotary tables are float32


def test_every_bias_matters() -> None:
    """Guards the comparison above against biases that do nothing."""
    weights = random_weights(TINY_DREAM, seed=2)
    ids = np.arange(9)
    whole = forward(TINY_DREAM, weights, ids)
    for name in (name for name in weights if name.endswith("layers.0.self_attn.k_proj.bias")):
        assert np.linalg.norm(forward(TINY_DREAM, weights | {name: 0 * weights[name]}, ids) - whole) > 1e-3


def test_the_family_is_recognised() -> None:
    assert family_of(DREAM_7B) is DREAM is FAMILIES["dream"]
    assert family_of({"model_type": "Dream"}) is DREAM
    with pytest.raises(InputError, match="no model family"):
        family_of(DREAM_7B | {"architectures": ["Qwen2ForCausalLM"]})


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"use_mrope": True}, "use_mrope is True"),
        ({"use_sliding_window": True, "sliding_window": 4096}, "use_sliding_window is True"),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, "type 'yarn'"),
        ({"rope_parameters": {"rope_type": "linear", "factor": 2.0}}, "rope_parameters asks for rotary"),
        ({"layer_types": ["sliding_attention"] * 28}, "layer_types must name full_attention"),
        ({"bd_size": 32}, "block-causal"),
        ({"mlp_bias": True}, "mlp_bias is True"),
        ({"attention_bias": False}, "attention_bias is False"),
        ({"head_dim": 64}, "head_dim is 64"),
        ({"num_attention_heads": 30}, "num_attention_heads is 30"),
        ({"num_key_value_heads": 5}, "num_key_value_heads is 5; it must divide"),
        ({"mask_token_id": 152064}, "mask_token_id is 152064"),
        ({"hidden_size": None}, "hidden_size is missing"),
    ],
)
def test_variants_that_are_not_computed_are_refused(change: dict[str, Any], what: str) -> None:
    with pytest.raises(InputError) as caught:
        DREAM.shape(DREAM_7B | change)
    assert what in str(caught.value)


def test_what_newer_transformers_write_is_understood() -> None:
    written = DREAM_7B | {
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
        "layer_types": ["full_attention"] * 28,
        "head_dim": 128,
    }
    assert DREAM.shape(written) == DREAM.shape(DREAM_7B)


@pytest.mark.parametrize("auto", [AutoModel, AutoModelForMaskedLM])
def test_transformers_loads_and_saves_it(tmp_path: Path, auto: Any) -> None:
    config = TINY_DREAM | {"bos_token_id": 1, "auto_map": {"AutoModel": "evil.Model"}}
    write_checkpoint(tmp_path / "a", config, random_weights(config), shards=2)
    model = auto.from_pretrained(tmp_path / "a", dtype=torch.float32)
    assert isinstance(model, hf.DreamModel)
    ids, mask = torch.arange(18).reshape(2, 9), torch.tensor([[1] * 9, [0] * 3 + [1] * 6])
    expected = load_decoder(tmp_path / "a")(ids, mask).logits
    with torch.no_grad():
        assert torch.equal(model(input_ids=ids, attention_mask=mask).logits, expected)
    model.save_pretrained(tmp_path / "b")
    assert torch.equal(load_decoder(tmp_path / "b")(ids, mask).logits, expected)
    assert AutoConfig.for_model("Dream").__class__ is hf.DreamConfig


def test_the_plan_of_dream_7b_needs_config_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.json").write_text(json.dumps(DREAM_7B))
    recipe = Path(__file__).parents[2] / "recipes" / "paper" / "gptq_w4a16.qs"
    assert main(["plan", str(recipe), "--model", str(tmp_path), "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert len(plan["modules"]) == 28 * 7 + 2
    names = {module["role"]: module["module"] for module in plan["modules"]}
    assert names["blocks[27].mlp.down"] == "model.layers.27.mlp.down_proj"
    assert names["head"] == "lm_head"
    # int4, symmetric groups of 128, 16-bit scales: 4 + 16 / 128, for every linear of the blocks
    bits = [module["bits"] for module in plan["modules"] if module["role"].startswith("blocks")]
    assert bits == pytest.approx([4 + 16 / 128] * 28 * 7)
