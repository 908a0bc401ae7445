"""Configs: what is recognised, what is read, and what every bad key is answered with."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qspec.errors import InputError
from qspec.models.config import read_config
from qspec.models.dream import DREAM
from qspec.models.family import DecoderShape, Family
from qspec.models.llada import LLADA
from qspec.models.registry import FAMILIES, family_of
from qspec.models.sampler import until
from tests.models.dream_layout import DREAM_7B
from tests.models.layout import LLADA_8B, TINY


def test_llada_8b_shape() -> None:
    assert LLADA.shape(LLADA_8B) == DecoderShape(
        layers=32,
        width=4096,
        heads=32,
        kv_heads=32,
        head_width=128,
        ffn=12288,
        vocab=126464,
        max_length=4096,
        norm_eps=1e-5,
        rope_theta=500000.0,
        qkv_bias=False,
        bias=False,
        tied=False,
        shift=False,
        sampler="llada",
        mask_token=126336,
        eos_token=126081,
        pad_token=126081,
    )


def test_defaults_of_absent_keys() -> None:
    absent = ("n_kv_heads", "embedding_size", "rms_norm_eps", "weight_tying", "include_bias", "rope")
    shape = LLADA.shape({key: value for key, value in TINY.items() if key not in absent} | {"vocab_size": 50})
    assert (shape.kv_heads, shape.vocab, shape.norm_eps, shape.tied, shape.bias) == (
        4,
        50,
        1e-5,
        False,
        False,
    )


def test_the_embedding_can_have_more_rows_than_the_vocabulary_but_not_fewer() -> None:
    assert LLADA.shape(TINY | {"vocab_size": 48, "embedding_size": 50}).vocab == 50
    with pytest.raises(InputError, match="embedding_size is 40; it must lie in 48"):
        LLADA.shape(TINY | {"vocab_size": 48, "embedding_size": 40})


@pytest.mark.parametrize(
    "key",
    [
        "d_model",
        "n_layers",
        "n_heads",
        "mlp_hidden_size",
        "vocab_size",
        "max_sequence_length",
        "rope_theta",
        "mask_token_id",
        "eos_token_id",
        "pad_token_id",
    ],
)
def test_a_missing_key_is_named(key: str) -> None:
    config = {k: v for k, v in LLADA_8B.items() if k != key}
    with pytest.raises(InputError, match=rf"config.json: {key} is missing"):
        LLADA.shape(config)


@pytest.mark.parametrize(
    ("key", "value", "problem"),
    [
        ("d_model", "4096", "must be an integer, not '4096'"),
        ("d_model", 4096.0, "must be an integer, not 4096.0"),
        ("d_model", True, "must be an integer, not True"),
        ("d_model", 0, "is 0; it must lie in 1.."),
        ("d_model", 2**40, "must lie in 1.."),
        ("d_model", 4097, "does not divide into heads"),
        ("n_layers", -1, "is -1; it must lie in 1..1024"),
        ("n_layers", 10**9, "must lie in 1..1024"),
        ("n_layers", [32], "must be an integer, not [32]"),
        ("n_heads", 24, "is 24; d_model 4096 does not divide into heads of even width"),
        ("n_heads", 4096, "heads of even width"),
        ("n_kv_heads", 64, "is 64; it must lie in 1..32"),
        ("n_kv_heads", 5, "is 5; it must divide n_heads 32"),
        ("mlp_hidden_size", {}, "must be an integer, not {}"),
        ("rms_norm_eps", 0, "is 0; it must lie between 0 and 1"),
        ("rms_norm_eps", float("nan"), "must lie between 0 and 1"),
        ("rope_theta", "big", "must be a number, not 'big'"),
        ("rope_theta", float("inf"), "must lie between 1 and 1e+12"),
        ("mask_token_id", 126464, "is 126464; it must lie in 0..126463"),
        ("eos_token_id", [1, "2"], "must be an integer, not '2'"),
        ("weight_tying", "no", "must be true or false, not 'no'"),
        ("block_type", "sequential", "is 'sequential'; only 'llama' is supported"),
        ("block_group_size", 4, "is 4; only 1 is supported"),
        ("activation_type", "swiglu", "is 'swiglu'; only 'silu' is supported"),
        ("layer_norm_type", "default", "is 'default'; only 'rms' is supported"),
        ("alibi", True, "is True; only False is supported"),
        ("rope", False, "is False; only True is supported"),
        ("attention_layer_norm", True, "is True; only False is supported"),
        ("scale_logits", True, "is True; only False is supported"),
        ("include_bias", True, "norms have no bias here"),
    ],
)
def test_a_bad_value_is_named(key: str, value: Any, problem: str) -> None:
    with pytest.raises(InputError) as caught:
        LLADA.shape(LLADA_8B | {key: value})
    assert problem in caught.value.what
    named = "bias_for_layer_norm" if key == "include_bias" else key
    assert named in caught.value.what or (key == "d_model" and "n_heads" in caught.value.what)


@given(
    key=st.sampled_from(sorted(LLADA_8B)),
    value=st.none()
    | st.booleans()
    | st.integers(-10, 10)
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.lists(st.integers(), max_size=2)
    | st.dictionaries(st.text(max_size=2), st.integers(), max_size=1),
)
def test_any_value_of_any_key_gives_a_shape_or_an_error(key: str, value: Any) -> None:
    """A shape that comes back is one that a decoder can be built from."""
    try:
        shape = LLADA.shape(TINY | {key: value})
    except InputError as caught:
        error: InputError | None = caught
    else:
        error = None
    if error is not None:
        assert (error.where or "").startswith("config.json: ")
        return
    assert shape.width == shape.heads * shape.head_width
    assert shape.heads % shape.kv_heads == 0
    assert shape.head_width % 2 == 0
    assert max(shape.mask_token, shape.eos_token, shape.pad_token) < shape.vocab


def test_llada_is_recognised_by_architecture_and_keys() -> None:
    assert family_of(LLADA_8B) is LLADA is FAMILIES["llada"]
    assert family_of({"model_type": "llada", "d_model": 64}) is LLADA


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"model_type": "llama", "architectures": ["LlamaForCausalLM"]},
        {"architectures": "LLaDAModelLM"},
        {"architectures": [["LLaDAModelLM"]], "model_type": ["llada"]},
    ],
)
def test_another_model_is_not_taken_for_llada(config: dict[str, Any]) -> None:
    with pytest.raises(InputError) as caught:
        family_of(config)
    assert "no model family recognises this config" in caught.value.what
    assert "known families: llada, dream" in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("config", "family"),
    [
        ({"model_type": "llada", "architectures": ["LLaDAMoEModelLM"], "num_experts": 64}, "llada_moe"),
        ({"model_type": "llada", "architectures": ["LLaDAMoEModel"], "num_experts": 64}, "llada_moe"),  # the base model
        ({"model_type": "llada", "num_experts": 64}, "llada_moe"),
        ({"model_type": "llada2_moe", "architectures": ["LLaDA2MoeModelLM"]}, "llada2"),
    ],
)
def test_mixtures_of_experts_are_families_of_their_own(config: dict[str, Any], family: str) -> None:
    assert family_of(config) is FAMILIES[family]


def test_a_folder_with_only_a_config_is_enough(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLADA_8B))
    family, shape, config = read_config(tmp_path)
    assert (family, shape, config) == (LLADA, LLADA.shape(LLADA_8B), LLADA_8B)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "config.json is missing"),
        (b"", "config.json is not valid JSON"),
        (b"{", "config.json is not valid JSON"),
        (b"\xff\xfe", "config.json is not valid JSON"),
        (b"[1, 2]", "config.json must hold a JSON object"),
        (b'{"d_model": 1, "d_model": 2}', "key 'd_model' stands twice"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"n_layers": ' + b"9" * 5000 + b"}", "config.json is not valid JSON"),
        (b" " * (1 << 20) + b"{}", "config.json cannot be read: it has more than 1048576 bytes"),
    ],
)
def test_an_unreadable_config_is_named(tmp_path: Path, content: bytes | None, problem: str) -> None:
    if content is not None:
        (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(InputError) as caught:
        read_config(tmp_path)
    assert problem in caught.value.what
    assert caught.value.where == str(tmp_path / "config.json")


def test_a_bad_key_is_reported_with_its_file(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(TINY | {"n_layers": 0}))
    with pytest.raises(InputError) as caught:
        read_config(tmp_path)
    assert caught.value.where == f"{tmp_path}/config.json: n_layers"


def test_reading_a_config_never_imports_torch() -> None:
    modules = "config, family, fields, llada, locate, registry, shards"
    heavy = "('torch', 'numpy', 'transformers', 'safetensors', 'huggingface_hub', 'pydantic')"
    script = f"import sys; from qspec.models import {modules}; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("family", [LLADA, DREAM], ids=lambda family: family.name)
@pytest.mark.parametrize("key", ["rope_parameters", "rope_scaling"])
def test_rope_theta_is_read_where_newer_transformers_put_it(family: Family, key: str) -> None:
    config = LLADA_8B if family is LLADA else DREAM_7B
    moved = {k: v for k, v in config.items() if k != "rope_theta"} | {
        key: {"rope_type": "default", "rope_theta": 12345}
    }
    assert family.shape(moved).rope_theta == 12345.0
    assert family.shape(config | {key: {"rope_theta": config["rope_theta"]}}) == family.shape(config)
    with pytest.raises(InputError, match=rf"{key}\.rope_theta is 12345, and rope_theta is"):
        family.shape(config | {key: {"rope_type": "default", "rope_theta": 12345}})
    for inner, what in (
        ({"rope_type": "yarn", "factor": 4.0}, "type 'yarn'"),
        ({"type": "dynamic", "factor": 2.0}, "type 'dynamic'"),
        ({"full_attention": {"rope_type": "default", "rope_theta": 1e4}}, "holds 'full_attention'"),
        ({"rope_type": "default", "factor": 4.0}, "holds 'factor'"),
        ({"rope_type": "default", "partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
        ("linear", "must be an object, not 'linear'"),
    ):
        with pytest.raises(InputError, match=what):
            family.shape(config | {key: inner})


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("d_model", "hidden_size"),
        ("n_layers", "num_hidden_layers"),
        ("n_heads", "num_attention_heads"),
        ("n_kv_heads", "num_key_value_heads"),
        ("mlp_hidden_size", "intermediate_size"),
        ("max_sequence_length", "max_position_embeddings"),
        ("weight_tying", "tie_word_embeddings"),
    ],
)
def test_a_key_in_either_spelling_is_read_and_two_that_differ_are_refused(ours: str, theirs: str) -> None:
    config = LLADA_8B | {"n_kv_heads": 8}
    renamed = {theirs if key == ours else key: value for key, value in config.items()}
    assert LLADA.shape(renamed) == LLADA.shape(config) == LLADA.shape(config | {theirs: config[ours]})
    other = not config[ours] if isinstance(config[ours], bool) else config[ours] * 2
    with pytest.raises(InputError, match=f"{ours} is {config[ours]}, and {theirs} says {other}"):
        LLADA.shape(config | {theirs: other})


def test_keys_inside_text_config_are_read_and_may_not_differ() -> None:
    inner = {"tie_word_embeddings": True, "hidden_size": DREAM_7B["hidden_size"]}
    outer = {key: value for key, value in DREAM_7B.items() if key not in inner}
    assert DREAM.shape(outer | {"text_config": inner}).tied
    with pytest.raises(InputError, match="tie_word_embeddings is False, and text_config says True"):
        DREAM.shape(DREAM_7B | {"text_config": inner})


def test_several_ends_of_text() -> None:
    shape = DREAM.shape(DREAM_7B | {"eos_token_id": [151643, 151645]})
    assert (shape.eos_token, shape.other_ends, shape.ends) == (151643, (151645,), (151643, 151645))
    assert DREAM.shape(DREAM_7B).ends == (151643,)
    assert until([5, 6, 151645, 7, 151643], *shape.ends) == [5, 6]
    with pytest.raises(InputError, match="eos_token_id must be an integer"):
        DREAM.shape(DREAM_7B | {"eos_token_id": []})
