"""The bundled stand-ins in Qwen's layouts, Dream's, Fast-dLLM v2's and SDAR-MoE's: the layout written out by hand, and
what they share with tiny-llada."""

from __future__ import annotations

import json

import pytest
from safetensors import safe_open

from qspec.models.locate import checkpoint_locate
from tests.models.expert_layout import SDAR_30B
from tests.standins.test_tiny_llada import FOLDER as LLADA

FOLDERS = {family: LLADA.parent / f"tiny-{family}" for family in ("dream", "fast_dllm", "sdar_moe")}


@pytest.fixture(params=FOLDERS)
def family(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


def settings(family: str, name: str) -> dict[str, object]:
    value: dict[str, object] = json.loads((FOLDERS[family] / name).read_text())
    return value


def test_it_is_found_by_its_name(family: str) -> None:
    assert checkpoint_locate(f"tiny-{family}") == FOLDERS[family]


def test_the_folder_is_small(family: str) -> None:
    sizes = [file.stat().st_size for file in FOLDERS[family].rglob("*") if file.is_file()]
    assert sum(sizes) <= 16 << 20
    assert max(sizes) <= 8 << 20


def test_config_has_dream_s_keys_and_the_ratios_of_the_7b_model() -> None:
    config = settings("dream", "config.json")
    official = """hidden_size intermediate_size num_attention_heads num_hidden_layers num_key_value_heads hidden_act
        max_position_embeddings rms_norm_eps rope_theta rope_scaling vocab_size tie_word_embeddings mask_token_id
        eos_token_id pad_token_id use_mrope use_sliding_window sliding_window max_window_layers"""
    assert set(official.split()) <= set(config)
    assert (config["architectures"], config["model_type"]) == (["DreamModel"], "Dream")
    assert config["intermediate_size"] == 28 * 32
    assert config["num_attention_heads"] == 4 * config["num_key_value_heads"]  # type: ignore[operator]
    assert (config["rope_theta"], config["rms_norm_eps"], config["tie_word_embeddings"]) == (1e6, 1e-6, False)


def test_fast_dllm_s_config_is_dream_s_with_blocks() -> None:
    """Both published models grew out of Qwen2.5; Fast-dLLM v2 names the length of its blocks `bd_size`."""
    own = {"architectures": ["Fast_dLLM_QwenForCausalLM"], "model_type": "Fast_dLLM_Qwen", "bd_size": 16}
    assert settings("fast_dllm", "config.json") == settings("dream", "config.json") | own


def test_sdar_moe_s_config_has_the_keys_of_the_30b_model() -> None:
    config = settings("sdar_moe", "config.json")
    assert set(SDAR_30B) <= set(config)
    for key in (
        "architectures",
        "model_type",
        "block_size",
        "decoder_sparse_step",
        "mlp_only_layers",
        "norm_topk_prob",
    ):
        assert config[key] == SDAR_30B[key], key
    assert config["num_attention_heads"] * config["head_dim"] == config["hidden_size"] == 256  # type: ignore[operator]
    assert config["num_experts"] * config["moe_intermediate_size"] == 768  # type: ignore[operator]


def _dense(block: str) -> dict[str, list[int]]:
    """Qwen2.5's: grouped queries with biases."""
    shapes = {f"{block}.mlp.{name}_proj.weight": [896, 256] for name in ("gate", "up")}
    shapes[f"{block}.mlp.down_proj.weight"] = [256, 896]
    for name, rows in (("q", 256), ("k", 64), ("v", 64)):
        shapes |= {
            f"{block}.self_attn.{name}_proj.{kind}": shape
            for kind, shape in (("weight", [rows, 256]), ("bias", [rows]))
        }
    return shapes


def _mixture(block: str) -> dict[str, list[int]]:
    """Qwen3-MoE's: norms of queries and keys, a router and six experts."""
    shapes = {f"{block}.self_attn.{name}_norm.weight": [64] for name in ("q", "k")}
    shapes |= {f"{block}.self_attn.{name}_proj.weight": [256, 256] for name in ("q", "k", "v")}
    shapes[f"{block}.mlp.gate.weight"] = [6, 256]
    for expert in range(6):
        shapes |= {f"{block}.mlp.experts.{expert}.{name}_proj.weight": [128, 256] for name in ("gate", "up")}
        shapes[f"{block}.mlp.experts.{expert}.down_proj.weight"] = [256, 128]
    return shapes


def test_tensors_have_the_published_names_and_shapes(family: str) -> None:
    expected = {"model.embed_tokens.weight": [640, 256], "lm_head.weight": [640, 256], "model.norm.weight": [256]}
    for n in range(6):
        block = f"model.layers.{n}"
        expected |= {f"{block}.{name}_layernorm.weight": [256] for name in ("input", "post_attention")}
        expected[f"{block}.self_attn.o_proj.weight"] = [256, 256]
        expected |= _mixture(block) if family == "sdar_moe" else _dense(block)
    found, index = {}, settings(family, "model.safetensors.index.json")
    for shard in sorted(FOLDERS[family].glob("*.safetensors")):
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
def test_tokenizer_and_data_are_tiny_llada_s(family: str, name: str) -> None:
    assert (FOLDERS[family] / name).read_bytes() == (LLADA / name).read_bytes()


def test_standin_names_its_data_and_sampler(family: str) -> None:
    own, other = settings(family, "standin.json"), json.loads((LLADA / "standin.json").read_text())
    assert (own["name"], own["family"], own["texts"]) == (f"tiny-{family}", family, other["texts"])
    for name, task in own["tasks"].items():  # type: ignore[attr-defined]
        assert task == other["tasks"][name] | {"block": task["length"]}  # none that the sampler is told
    assert (FOLDERS[family] / "README.md").is_file()
