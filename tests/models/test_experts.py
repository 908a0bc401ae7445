"""Mixtures of experts: published layouts, and logits against an independent forward pass in float64."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

import qspec.models.hf as hf
from qspec.cli import main
from qspec.errors import InputError
from qspec.models.checkpoint import Checkpoint, load_decoder
from qspec.models.decoder import Decoder
from qspec.models.family import Experts, Family
from qspec.models.llada2 import LLADA2
from qspec.models.llada_moe import LLADA_MOE
from qspec.models.registry import family_of
from qspec.models.routing import Pools, by_expert, route
from qspec.models.sdar_moe import SDAR_MOE
from tests.language.fakes import ROOT
from tests.models.expert_layout import (
    LLADA2_2,
    LLADA2_FLASH,
    LLADA2_MINI,
    LLADA_MOE_7B,
    SDAR_30B,
    TINY_LLADA2,
    TINY_LLADA2_2,
    TINY_LLADA_MOE,
    TINY_SDAR_MOE,
    forward,
    in_parts,
    random_weights,
    shapes,
)
from tests.models.layout import write_checkpoint

KINDS = {
    "llada_moe": (LLADA_MOE, TINY_LLADA_MOE),
    "sdar_moe": (SDAR_MOE, TINY_SDAR_MOE),
    "llada2": (LLADA2, TINY_LLADA2),
    "llada2.2": (LLADA2, TINY_LLADA2_2),
}
SIZES = [
    ("llada_moe", None), ("sdar_moe", 4), ("sdar_moe", 32), ("llada2", 4), ("llada2", 32), ("llada2.2", 4),
]  # fmt: skip


def tiny(kind: str, block: int | None) -> tuple[dict[str, Any], dict[str, Any], Decoder]:
    family, config = KINDS[kind]
    config = config | ({} if block is None else {"block_size": block})
    weights = random_weights(config, seed=3)
    decoder = Decoder(family, family.shape(config), dtype=torch.float64)
    decoder.load_state_dict({name: torch.from_numpy(w) for name, w in in_parts(config, weights).items()})
    return config, weights, decoder.requires_grad_(False)


@pytest.mark.parametrize(
    ("family", "config", "parameters", "tensors"),
    [
        (LLADA_MOE, LLADA_MOE_7B, 7_356_880_896, None),
        (SDAR_MOE, SDAR_30B, 61_064_245_248 // 2, None),
        (LLADA2, LLADA2_MINI, (32_511_296_512 - 2 * 19 * 256) // 2, 14_813),  # biases of 19 routers in float32
        (LLADA2, LLADA2_FLASH, 102_889_705_216, 24_161),
        (LLADA2, LLADA2_MINI | LLADA2_2, 16_255_643_392, None),  # 30.28 GiB
    ],
    ids=["LLaDA-MoE-7B-A1B", "SDAR-30B-A3B", "LLaDA2-mini", "LLaDA2-flash", "LLaDA2.2-mini"],
)  # fmt: skip
def test_the_checkpoint_is_the_published_layout(
    family: Family, config: dict[str, Any], parameters: int, tensors: int | None
) -> None:
    shape = family.shape(config)
    published = shapes(config)
    assert family.tensors(shape) == published
    assert family_of(config) is family
    one = family.shape(config | {"num_hidden_layers": 2} | ({"moe_layer_freq": [1, 1]} if family is LLADA_MOE else {}))
    decoder = Decoder(family, one, device="meta", dtype=torch.bfloat16)
    state = {name: tuple(t.shape) for name, t in decoder.state_dict().items()}
    assert state == family.state(one)
    sizes = [int(np.prod(shape)) for shape in published.values()]
    assert sum(sizes) == parameters
    assert tensors in (None, len(published))
    vectors = (n for name, n in zip(published, sizes, strict=True) if "norm" in name or "expert_bias" in name)
    assert family.vectors(shape) == sum(vectors)
    if family is not LLADA2:
        assert state == {name: size for name, size in published.items() if name in state}


def test_parts_of_llada2_flash_have_the_bytes_of_its_published_headers() -> None:
    """In bfloat16, as the headers of its 42 shards tell."""
    parts = dict.fromkeys(("experts", "shared_experts", "gate", "mlp", "attention", "word_embeddings", "lm_head"), 0)
    for name, shape in LLADA2.tensors(LLADA2.shape(LLADA2_FLASH)).items():
        part = next((part for part in parts if f".{part}." in f".{name}"), None)
        if part is not None and len(shape) == 2:
            parts[part] += 2 * int(np.prod(shape))
    assert parts.pop("experts") == 2 * 99_857_989_632
    assert [round(size / 1e9, 3) for size in parts.values()] == [0.780, 0.065, 0.226, 2.416, 1.288, 1.288]


def test_what_llada2s_configs_leave_out() -> None:
    plain, later = LLADA2.shape(LLADA2_MINI), LLADA2.shape(LLADA2_MINI | LLADA2_2)
    assert (plain.block, plain.mask_token, plain.ends, plain.edit_tokens) == (32, 156895, (156892,), ())
    assert (later.block, later.mask_token, later.ends) == (32, 156895, (156892, 156900))
    assert later.edit_tokens == (156930, 156931)


@pytest.mark.parametrize(("kind", "block"), SIZES)
def test_logits_equal_the_equations_in_float64(kind: str, block: int | None) -> None:
    """A whole number of blocks, and a part of one at the end."""
    config, weights, decoder = tiny(kind, block)
    ids = np.random.default_rng(1).integers(0, 50, 2 * (block or 8) + 3)
    found = decoder(torch.from_numpy(ids)[None]).logits[0].numpy()
    expected = forward(config, weights, ids)
    assert np.linalg.norm(found - expected) < 1e-6 * np.linalg.norm(expected)  # rotary tables are float32


@pytest.mark.parametrize(
    ("kind", "block", "side"),
    [*((*size, side) for size, side in zip(SIZES, ("left", "right") * 3, strict=True)), ("llada2.2", 4, "left")],
)
def test_padding_moves_nothing(kind: str, block: int | None, side: str) -> None:
    config, weights, decoder = tiny(kind, block)
    ids = np.random.default_rng(2).integers(0, 50, (block or 8) + 5)
    padding, real = np.zeros(3, dtype=np.int64), np.ones(len(ids), dtype=np.int64)
    row, mask = ((padding, ids), (padding, real)) if side == "left" else ((ids, padding), (real, padding))
    row, mask = np.concatenate(row), np.concatenate(mask)
    other = np.random.default_rng(4).integers(0, 50, len(row))
    batch, masks = torch.from_numpy(np.stack((row, other))), torch.from_numpy(np.stack((mask, np.ones_like(mask))))
    found = decoder(batch, masks).logits.numpy()
    for place, expected in ((0, forward(config, weights, ids)), (1, forward(config, weights, other))):
        kept = found[place][masks[place].numpy() == 1]
        assert np.linalg.norm(kept - expected) < 1e-6 * np.linalg.norm(expected)


@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_is_read_by_its_published_names(tmp_path: Path, kind: str) -> None:
    config, weights, decoder = tiny(kind, None)
    write_checkpoint(tmp_path, config, weights)
    ids = torch.arange(20).reshape(2, 10)
    loaded = load_decoder(tmp_path, dtype=torch.float64)
    assert torch.equal(loaded(ids).logits, decoder(ids).logits)
    last = config["num_hidden_layers"] - 1
    block = Checkpoint.open(tmp_path).load_block(last, dtype=torch.float64)
    state = decoder.blocks[last].state_dict()
    assert set(block.state_dict()) == set(state)
    assert all(torch.equal(tensor, state[name]) for name, tensor in block.state_dict().items())


def test_transformers_loads_sdar_moe(tmp_path: Path) -> None:
    config, weights, decoder = tiny("sdar_moe", 4)
    write_checkpoint(tmp_path, config, weights)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float64)
    assert isinstance(model, hf.SDARMoeForCausalLM)
    ids = torch.arange(20).reshape(2, 10)
    with torch.no_grad():
        assert torch.allclose(model(input_ids=ids).logits, decoder(ids).logits, rtol=0, atol=1e-9)


def test_the_routers_by_hand() -> None:
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]])
    softmax = (torch.tensor([2.0, 1.0]).exp() / torch.tensor([2.0, 1.0, 0.0, -1.0]).exp().sum()).tolist()
    plain = route(logits, Experts(4, 2, 8))
    assert plain.experts.tolist() == [[0, 1]]
    assert plain.weights[0].tolist() == pytest.approx(softmax)
    normalized = route(logits, Experts(4, 2, 8, normalized=True))
    assert normalized.weights[0].tolist() == pytest.approx([s / sum(softmax) for s in softmax])
    # sigmoids .881 .731 .5 .269; with the bias .881 .231 .9 .669: groups (0, 1) 1.112 and (2, 3) 1.569
    bias = torch.tensor([0.0, -0.5, 0.4, 0.4])
    how = Experts(4, 2, 8, scoring="sigmoid", bias=True, groups=2, top_groups=1, normalized=True, scale=2.5)
    grouped = route(logits, how, bias)
    assert grouped.experts.tolist() == [[2, 3]]
    scores = [0.5, 1 / (1 + np.e)]
    assert grouped.weights[0].tolist() == pytest.approx([2.5 * s / sum(scores) for s in scores])
    # of a second token's .119 .953 .119 .119, with the bias .119 .453 .519 .519; best of both .881 .453 .9 .669
    both = torch.cat((logits, torch.tensor([[-2.0, 3.0, -2.0, -2.0]])))
    shared = Experts(4, 1, 8, scoring="sigmoid", bias=True, capacity=2)
    assert route(both, shared, bias, pools=Pools(torch.tensor([0, 0]), 1)).experts.tolist() == [[2], [2]]
    alone = Pools(torch.tensor([2, 0]), 3)
    assert route(both, replace(shared, capacity=1), torch.zeros(4), pools=alone).experts.tolist() == [[0], [1]]
    decided = route(logits, how, bias, chosen=torch.tensor([[1, 0]]))
    assert decided.experts.tolist() == [[1, 0]]
    assert float(decided.weights.sum()) == pytest.approx(2.5)


def test_places_in_the_order_of_experts() -> None:
    places, offsets = by_expert(torch.tensor([[2, 0], [0, 3], [2, 0]]), 4)
    assert places.tolist() == [1, 2, 5, 0, 4, 3]
    assert offsets.tolist() == [0, 3, 3, 5, 6]


@pytest.mark.parametrize(
    ("family", "config", "change", "what"),
    [
        (LLADA_MOE, LLADA_MOE_7B, {"moe_layer_freq": [0, 1]}, "moe_layer_freq must be 1"),
        (LLADA_MOE, LLADA_MOE_7B, {"shared_expert_intermediate_size": 64}, "shared_expert_intermediate_size is 64"),
        (LLADA_MOE, LLADA_MOE_7B, {"num_experts_per_tok": 65}, "num_experts_per_tok is 65"),
        (SDAR_MOE, SDAR_30B, {"mlp_only_layers": [0]}, "mlp_only_layers is [0]"),
        (SDAR_MOE, SDAR_30B, {"decoder_sparse_step": 2}, "decoder_sparse_step is 2"),
        (LLADA2, LLADA2_MINI, {"score_function": "softmax"}, "score_function is 'softmax'"),
        (LLADA2, LLADA2_MINI, {"n_group": 7}, "n_group is 7"),
        (LLADA2, LLADA2_MINI, {"partial_rotary_factor": 0.25}, "rotary_dim is 64"),
        (LLADA2, LLADA2_MINI, {"expert_capacity": 257}, "expert_capacity is 257, more than num_experts 256"),
        (LLADA2, LLADA2_MINI, {"expert_capacity": 4}, "num_experts_per_tok is 8"),
        (LLADA2, LLADA2_MINI | LLADA2_2, {"vocab_size": 156931}, "split_token_id is 156931"),
        (LLADA2, LLADA2_MINI | LLADA2_2, {"split_token_id": 156930}, "which is delete_token_id too"),
    ],
)
def test_variants_that_are_not_computed_are_refused(
    family: Family, config: dict[str, Any], change: dict[str, Any], what: str
) -> None:
    with pytest.raises(InputError) as caught:
        family.shape(config | change)
    assert what in str(caught.value)


@pytest.mark.parametrize(
    ("model", "modules", "active"),
    [
        # all of attention and router; the first block's MLP, or 8 + 1 experts
        ("inclusionAI/LLaDA2.0-flash", 2 + 32 * 4 + 3 + 31 * (1 + 257 * 3),
         32 * (2 * 32 + 2 * 4) * 128 * 4096 + 3 * 4096 * 9216 + 31 * (256 * 4096 + 9 * 3 * 4096 * 1024)),
        ("JetLM/SDAR-30B-A3B-Chat", 2 + 48 * (4 + 1 + 128 * 3),
         48 * ((2 * 32 + 2 * 4) * 128 * 2048 + 128 * 2048 + 8 * 3 * 2048 * 768)),
    ],
    ids=["LLaDA2-flash", "SDAR-30B"],
)  # fmt: skip
def test_a_plan_needs_config_alone(capsys: pytest.CaptureFixture[str], model: str, modules: int, active: int) -> None:
    assert main(["plan", str(ROOT / "recipes" / "experts" / "w4a16.qs"), "--model", model, "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert len(plan["modules"]) == modules
    assert plan["active"]["block_weights"] == active
    bits = {module["role"]: module["bits"] for module in plan["modules"]}
    assert bits["blocks[7].mlp.experts[127].down"] == pytest.approx(4.125)
    assert bits["blocks[7].mlp.router"] == 32
    routers = sum("router" in role for role in bits) * 128 * 2048 * (4 if "LLaDA2" in model else 1)
    assert plan["active"]["bytes"] == pytest.approx((4.125 * (active - routers) + 32 * routers) / 8, abs=8)


@pytest.mark.slow
@pytest.mark.parametrize("config", [LLADA2_FLASH, SDAR_30B], ids=["LLaDA2-flash", "SDAR-30B"])
def test_a_plan_of_24000_modules_takes_a_second(tmp_path: Path, config: dict[str, Any]) -> None:
    """Of a process of its own, with everything that it imports."""
    (tmp_path / "config.json").write_text(json.dumps(config))
    recipe = ROOT / "recipes" / "experts" / "w4a4.qs"
    command = [sys.executable, "-m", "qspec", "plan", str(recipe), "--model", str(tmp_path)]
    took = []
    for _ in range(3):
        start = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True, cwd=ROOT)
        took.append(time.perf_counter() - start)
    assert min(took) < 1.0


def test_a_routers_bias_keeps_its_dtype(tmp_path: Path) -> None:
    config, weights, _ = tiny("llada2", 4)
    write_checkpoint(tmp_path, config, weights)
    state = load_decoder(tmp_path, dtype=torch.bfloat16).state_dict()
    wide = {name for name, tensor in state.items() if tensor.dtype != torch.bfloat16}
    assert wide == {f"model.layers.{n}.mlp.gate.expert_bias" for n in (1, 2)}
    assert all(torch.equal(state[name], torch.from_numpy(weights[name])) for name in wide)
