"""The bundled Dream stand-in: its layout written out by hand, and what it shares with tiny-llada."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors import safe_open

from tests.standins.test_tiny_llada import FOLDER as LLADA

FOLDER = LLADA.parent / "tiny-dream"


def settings(name: str) -> dict[str, object]:
    value: dict[str, object] = json.loads((FOLDER / name).read_text())
    return value


def test_the_folder_is_small() -> None:
    sizes = [file.stat().st_size for file in FOLDER.rglob("*") if file.is_file()]
    assert sum(sizes) <= 16 << 20
    assert max(sizes) <= 8 << 20


def test_config_has_dream_s_keys_and_the_ratios_of_the_7b_model() -> None:
    config = settings("config.json")
    official = """hidden_size intermediate_size num_attention_heads num_hidden_layers num_key_value_heads hidden_act
        max_position_embeddings rms_norm_eps rope_theta rope_scaling vocab_size tie_word_embeddings mask_token_id
        eos_token_id pad_token_id use_mrope use_sliding_window sliding_window max_window_layers"""
    assert set(official.split()) <= set(config)
    assert (config["architectures"], config["model_type"]) == (["DreamModel"], "Dream")
    assert config["intermediate_size"] == 28 * 32
    assert config["num_attention_heads"] == 4 * config["num_key_value_heads"]  # type: ignore[operator]
    assert (config["rope_theta"], config["rms_norm_eps"], config["tie_word_embeddings"]) == (1e6, 1e-6, False)


def test_tensors_have_the_published_names_and_shapes() -> None:
    expected = {"model.embed_tokens.weight": [640, 256], "lm_head.weight": [640, 256], "model.norm.weight": [256]}
    for n in range(6):
        block = f"model.layers.{n}"
        expected |= {f"{block}.{name}_layernorm.weight": [256] for name in ("input", "post_attention")}
        for name, rows in (("q", 256), ("k", 64), ("v", 64)):
            expected |= {
                f"{block}.self_attn.{name}_proj.weight": [rows, 256],
                f"{block}.self_attn.{name}_proj.bias": [rows],
            }
        expected[f"{block}.self_attn.o_proj.weight"] = [256, 256]
        expected |= {f"{block}.mlp.{name}_proj.weight": [896, 256] for name in ("gate", "up")}
        expected[f"{block}.mlp.down_proj.weight"] = [256, 896]
    found, index = {}, settings("model.safetensors.index.json")
    for shard in sorted(FOLDER.glob("*.safetensors")):
        with safe_open(shard, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 (not a dict)
                found[name] = list(file.get_slice(name).get_shape())
                assert index["weight_map"][name] == shard.name  # type: ignore[index]
                if name.endswith("bias"):
                    assert float(file.get_tensor(name).float().square().mean()) > 1e-3  # trained biases
    assert found == expected


@pytest.mark.parametrize(
    "name",
    [
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        *(f"data/{kind}.jsonl" for kind in ("recall", "arithmetic", "brackets", "calibration", "heldout")),
    ],
)
def test_tokenizer_and_data_are_tiny_llada_s(name: str) -> None:
    assert (FOLDER / name).read_bytes() == (LLADA / name).read_bytes()


def test_standin_names_its_data_and_sampler() -> None:
    own, other = settings("standin.json"), json.loads((LLADA / "standin.json").read_text())
    assert (own["name"], own["family"], own["texts"]) == ("tiny-dream", "dream", other["texts"])
    for name, task in own["tasks"].items():  # type: ignore[attr-defined]
        assert task == other["tasks"][name] | {"block": task["length"]}  # no blocks
    assert Path(FOLDER / "README.md").is_file()
