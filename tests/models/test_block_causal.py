"""SDAR and Fast-dLLM v2: published layouts, and logits against an independent forward pass in float64."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

import qspec.models.hf as hf
from qspec.cli import main
from qspec.errors import InputError
from qspec.models.checkpoint import load_decoder
from qspec.models.decoder import Decoder
from qspec.models.family import Family
from qspec.models.fast_dllm import FAST_DLLM
from qspec.models.registry import family_of
from qspec.models.sdar import SDAR
from qspec.models.sdar_moe import SDAR_MOE
from tests.models.block_layout import (
    FAST_DLLM_7B,
    SDAR_1_7B,
    SDAR_4B,
    SDAR_8B,
    TINY_FAST,
    TINY_SDAR,
    forward,
    random_weights,
    shapes,
)
from tests.models.layout import write_checkpoint

KINDS = {"sdar": (SDAR, TINY_SDAR, "block_size"), "fast_dllm": (FAST_DLLM, TINY_FAST, "bd_size")}


def tiny(kind: str, block: int) -> tuple[dict[str, Any], dict[str, Any], Decoder]:
    family, config, key = KINDS[kind]
    config = config | {key: block}
    weights = random_weights(config, seed=3)
    decoder = Decoder(family, family.shape(config), dtype=torch.float64)
    decoder.load_state_dict({name: torch.from_numpy(w) for name, w in weights.items()})
    return config, weights, decoder.requires_grad_(False)


@pytest.mark.parametrize(
    ("family", "config", "parameters", "change"),
    [
        (SDAR, SDAR_1_7B, 2_031_739_904, {}),  # 4.06 GB on the hub
        (SDAR, SDAR_4B, 4_411_424_256, {}),  # 8.83; 32 heads of 128 on 2560 channels
        (SDAR, SDAR_8B, 8_190_735_360, {}),  # 16.4
        (FAST_DLLM, FAST_DLLM_7B, 7_615_616_512, {"layer_types": ["full_attention"] * 28}),
        (FAST_DLLM, FAST_DLLM_7B, None, {"hidden_size": 1536, "intermediate_size": 8960, "num_attention_heads": 12,
                                         "num_key_value_heads": 2, "tie_word_embeddings": True,
                                         "vocab_size": 151936}),  # 1.5B
    ],
    ids=["SDAR-1.7B", "SDAR-4B", "SDAR-8B", "Fast-dLLM-v2-7B", "Fast-dLLM-v2-1.5B"],
)  # fmt: skip
def test_state_dict_is_the_published_layout(
    family: Family, config: dict[str, Any], parameters: int | None, change: dict[str, Any]
) -> None:
    config = config | change
    shape = family.shape(config)
    decoder = Decoder(family, shape, device="meta", dtype=torch.bfloat16)
    found = {name: tuple(t.shape) for name, t in decoder.state_dict().items()}
    assert found == shapes(config) == family.tensors(shape)
    if parameters is not None:
        assert sum(t.numel() for t in decoder.state_dict().values()) == parameters
    gains = sum(t.numel() for name, t in decoder.state_dict().items() if "norm" in name)
    assert family.vectors(shape) == gains
    assert family_of(config) is family


def test_what_the_configs_leave_out() -> None:
    sdar = SDAR.shape(SDAR_4B)
    assert sdar == SDAR.shape(SDAR_1_7B | SDAR_4B)
    assert (sdar.block, sdar.mask_token, sdar.ends, sdar.shift, sdar.sampler) == (
        4, 151669, (151643, 151645), False, "block",
    )  # fmt: skip
    fast = FAST_DLLM.shape({k: v for k, v in FAST_DLLM_7B.items() if k != "bd_size"})
    assert fast == FAST_DLLM.shape(FAST_DLLM_7B)
    assert (fast.block, fast.mask_token, fast.ends, fast.shift) == (32, 151665, (151645,), True)


@pytest.mark.parametrize(
    ("family", "config", "change", "what"),
    [
        (SDAR, SDAR_1_7B, {"attention_bias": True}, "attention_bias is True"),
        (SDAR, SDAR_1_7B, {"block_size": 0}, "block_size is 0"),
        (SDAR, SDAR_1_7B, {"head_dim": 127}, "head_dim is 127"),
        (SDAR, SDAR_1_7B, {"use_sliding_window": True}, "use_sliding_window is True"),
        (FAST_DLLM, FAST_DLLM_7B, {"bd_size": "32"}, "bd_size must be an integer"),
        (FAST_DLLM, FAST_DLLM_7B, {"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        (FAST_DLLM, FAST_DLLM_7B, {"num_key_value_heads": 3}, "num_key_value_heads is 3; it must divide"),
    ],
)
def test_variants_that_are_not_computed_are_refused(
    family: Family, config: dict[str, Any], change: dict[str, Any], what: str
) -> None:
    with pytest.raises(InputError) as caught:
        family.shape(config | change)
    assert what in str(caught.value)


def test_mixtures_of_experts_are_not_taken_for_them() -> None:
    assert family_of(SDAR_1_7B | {"architectures": ["SDARMoeForCausalLM"], "model_type": "sdar_moe"}) is SDAR_MOE


@pytest.mark.parametrize("block", [4, 32])
@pytest.mark.parametrize("kind", KINDS)
def test_logits_equal_the_equations_in_float64(kind: str, block: int) -> None:
    """A whole number of blocks, and a part of one at the end."""
    config, weights, decoder = tiny(kind, block)
    ids = np.random.default_rng(1).integers(0, 50, 2 * block + 3)
    found = decoder(torch.from_numpy(ids)[None]).logits[0].numpy()
    expected = forward(config, weights, ids)
    assert np.linalg.norm(found - expected) < 1e-6 * np.linalg.norm(expected)  # rotary tables are float32


@pytest.mark.parametrize("block", [4, 32])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_moves_no_block(kind: str, block: int, side: str) -> None:
    config, weights, decoder = tiny(kind, block)
    ids = np.random.default_rng(2).integers(0, 50, block + 5)
    padding, real = np.zeros(3, dtype=np.int64), np.ones(len(ids), dtype=np.int64)
    row, mask = ((padding, ids), (padding, real)) if side == "left" else ((ids, padding), (real, padding))
    row, mask = np.concatenate(row), np.concatenate(mask)
    other = np.random.default_rng(4).integers(0, 50, len(row))
    batch, masks = torch.from_numpy(np.stack((row, other))), torch.from_numpy(np.stack((mask, np.ones_like(mask))))
    found = decoder(batch, masks).logits.numpy()
    for place, expected in ((0, forward(config, weights, ids)), (1, forward(config, weights, other))):
        kept = found[place][masks[place].numpy() == 1]
        assert np.linalg.norm(kept - expected) < 1e-6 * np.linalg.norm(expected)


def test_a_token_sees_its_block_and_those_before() -> None:
    _, _, decoder = tiny("sdar", 4)
    ids = torch.arange(12)[None]
    logits = decoder(ids).logits[0]
    for changed in range(12):
        other = ids.clone()
        other[0, changed] = 40
        moved = (decoder(other).logits[0] != logits).any(1)
        assert moved.tolist() == [place // 4 >= changed // 4 for place in range(12)]


@pytest.mark.parametrize("block", [4, 32])
@pytest.mark.parametrize("kind", KINDS)
def test_noised_blocks_over_a_clean_text(kind: str, block: int) -> None:
    """In one pass: each noised block as if the text before it were clean, and the clean text as it is alone."""
    config, weights, decoder = tiny(kind, block)
    rng = np.random.default_rng(5)
    clean = rng.integers(0, 46, 2 * block + 2)
    noised = np.where(rng.random(len(clean)) < 0.5, 47, clean)
    real = torch.ones(1, len(clean) + 2, dtype=torch.bool)
    real[0, -2:] = False  # padding behind both halves
    ids = torch.from_numpy(np.concatenate((noised, [0, 0], clean, [0, 0])))[None]
    logits = decoder.finish(decoder.through(ids, decoder.noised_context(real)))[0].numpy()
    size = len(clean)
    expected = forward(config, weights, noised, before=clean), forward(config, weights, clean)
    for found, wanted in zip((logits[:size], logits[size + 2 : -2]), expected, strict=True):
        assert np.linalg.norm(found - wanted) < 1e-6 * np.linalg.norm(wanted)
    plain = forward(config, weights, noised)
    assert np.linalg.norm(plain - expected[0]) > 1e-2 * np.linalg.norm(plain)  # it matters


@pytest.mark.parametrize("kind", KINDS)
def test_transformers_loads_it(tmp_path: Path, kind: str) -> None:
    config, weights, decoder = tiny(kind, 4)
    write_checkpoint(tmp_path, config, weights)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float64)
    assert isinstance(model, hf.SDARForCausalLM if kind == "sdar" else hf.Fast_dLLM_QwenForCausalLM)
    ids = torch.arange(20).reshape(2, 10)
    with torch.no_grad():
        assert torch.allclose(model(input_ids=ids).logits, decoder(ids).logits, rtol=0, atol=1e-9)
    assert torch.equal(load_decoder(tmp_path, dtype=torch.float64)(ids).logits, model(input_ids=ids).logits)


@pytest.mark.parametrize(("config", "linears"), [(SDAR_1_7B, 28 * 7), (FAST_DLLM_7B, 28 * 7)])
def test_a_plan_needs_config_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], config: dict[str, Any], linears: int
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    recipe = tmp_path / "w4a16.qs"
    family = family_of(config).name
    recipe.write_text(
        f'qspec 1\nrecipe w4a16 {{\n  family {family}\n  model "x/y"\n}}\n'
        "scheme w4 {\n  weights int4 per group 128\n}\nlayers blocks[*].* use w4\napply rtn on blocks[*].*\n"
    )
    assert main(["plan", str(recipe), "--model", str(tmp_path), "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert len(plan["modules"]) == linears + 2
    bits = {module["role"]: module["bits"] for module in plan["modules"]}
    assert bits["blocks[27].mlp.down"] == pytest.approx(4.125)
