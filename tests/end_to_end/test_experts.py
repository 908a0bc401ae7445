"""Mixtures of experts through the commands: compiled, loaded, measured, with every module accounted for."""

from __future__ import annotations

import html
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM

import qspec
import qspec.hf
from qspec import cli
from qspec.kernels import experts
from qspec.models.checkpoint import load_decoder
from qspec.models.registry import family_of
from qspec.models.shards import tensor_table
from tests.end_to_end.conftest import DUQUANT, GPTQ, RTN, SMOOTH, W4A4, W4A16, W8A8, Mini, one_scheme
from tests.models.expert_layout import TINY_LLADA2, TINY_LLADA_MOE, TINY_SDAR_MOE, random_weights
from tests.models.hub import hub_folder

SIZES = {
    "hidden_size": 64,
    "vocab_size": 1024,
    "mask_token_id": 2,
    "eos_token_id": 0,
    "pad_token_id": 1,
    "num_hidden_layers": 2,
    "num_experts": 4,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "llada_moe": TINY_LLADA_MOE | SIZES | {"expert_intermediate_size": 32},
    "sdar_moe": TINY_SDAR_MOE | SIZES | {"head_dim": 32, "moe_intermediate_size": 32},
    "llada2": TINY_LLADA2
    | SIZES
    | {"head_dim": 32, "rotary_dim": 16, "block_size": 8, "intermediate_size": 96, "moe_intermediate_size": 32}
    | {"n_group": 2, "topk_group": 1},
}
CONFIGS["llada2.2"] = CONFIGS["llada2"] | {"expert_capacity": 3, "delete_token_id": 1022, "split_token_id": 1023}


def checkpoint(name: str, folder: Path) -> Path:
    folder = hub_folder(folder / "model")
    (folder / "config.json").write_text(json.dumps(CONFIGS[name]))
    weights = random_weights(CONFIGS[name], seed=1)
    save_file({key: torch.from_numpy(w).bfloat16() for key, w in weights.items()}, folder / "model.safetensors")
    return folder


def stored_bytes(model: nn.Module) -> int:
    """Of parameters and buffers, each piece of memory once."""
    tensors = (*model.parameters(), *model.buffers())
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


@pytest.mark.parametrize(
    ("family", "scheme", "passes"),
    [
        ("llada2", W8A8, RTN),
        *(
            pytest.param(family, scheme, passes, marks=pytest.mark.slow)
            for family in CONFIGS
            for scheme, passes in ((W4A16, GPTQ), (W8A8, RTN), (W4A4, f"{SMOOTH}\napply {DUQUANT}"))
            if (family, scheme) != ("llada2", W8A8)
        ),
    ],
)
def test_every_module_is_compiled_loaded_and_measured(
    mini: Mini, tmp_path: Path, capsys: pytest.CaptureFixture[str], family: str, scheme: str, passes: str
) -> None:
    model = checkpoint(family, tmp_path)
    path, out = one_scheme(model, mini.text, scheme, passes), tmp_path / "out"
    assert cli.main(["compile", str(path), "--out", str(out), "--device", "cpu"]) == 0
    printed = capsys.readouterr().out
    assert "NELBO" in printed
    known = family_of(CONFIGS[family])
    manifest = json.loads((out / "qspec.json").read_text())
    assert manifest["bytes_after"] == sum(tensor.bytes for tensor in tensor_table(out).values())
    records = {record["role"]: record for record in manifest["modules"]}
    assert list(records) == [str(entry.role) for entry in known.modules(known.shape(CONFIGS[family]))]
    kept = [role for role, record in records.items() if record["scheme"] is None]
    mixed = [n for n in range(2) if n >= CONFIGS[family].get("first_k_dense_replace", 0)]
    assert kept == ["embedding", *(f"blocks[{n}].mlp.router" for n in mixed), "head"]
    loaded, _ = qspec.load(out, device="cpu")
    original = load_decoder(model, dtype=torch.float32)
    ids = torch.arange(3, 67).reshape(2, 32)
    found, exact = loaded(ids).logits, original(ids).logits
    changed = (found - exact).norm(dim=-1) / exact.norm(dim=-1)  # of a token: few have another expert now
    assert float(changed.median()) < (0.05 if scheme == W8A8 else 0.7)
    held = stored_bytes(loaded)
    experts.install(loaded)  # as on a GPU
    assert [block.grouped is not None for block in loaded.blocks] == [n in mixed for n in range(2)]
    calls: list[int] = []
    shown = [block.grouped for block in loaded.blocks if block.grouped is not None]
    for module in shown:
        module.register_forward_hook(lambda *_: calls.append(1))
    assert float((loaded(ids).logits - found).norm() / found.norm()) < 1e-5
    assert len(calls) == len(shown) == len(mixed)
    assert stored_bytes(loaded) < 1.1 * held  # one copy of the codes
    if passes.startswith("rtn"):  # nothing moves into a router: what is stored is what the checkpoint has
        name = f"model.layers.{mixed[0]}.mlp.gate.weight"
        assert torch.equal(loaded.state_dict()[name], original.state_dict()[name])


@pytest.mark.parametrize("scheme", [W4A16])
def test_an_expert_that_nothing_is_routed_to_is_named(
    mini: Mini, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, scheme: str
) -> None:
    """Calibrated on what the whole layer sees, and the output, the manifest and the report say so by name and count."""
    own = CONFIGS["llada2"] | {"n_group": 1, "topk_group": 1}
    monkeypatch.setitem(CONFIGS, "llada2", own)
    model = checkpoint("llada2", tmp_path)
    weights = load_file(model / "model.safetensors")
    weights["model.layers.1.mlp.gate.expert_bias"][3] = -10.0  # below every sigmoid
    save_file(weights, model / "model.safetensors")
    out = tmp_path / "out"
    path = one_scheme(model, mini.text, scheme, GPTQ, rules="layers blocks[0].*, blocks[1].attention.* keep")
    assert cli.main(["compile", str(path), "--out", str(out), "--device", "cpu"]) == 0
    printed = capsys.readouterr()
    records = {record["role"]: record for record in json.loads((out / "qspec.json").read_text())["modules"]}
    counts = [records[f"blocks[1].mlp.experts[{expert}].down"]["tokens"] for expert in range(4)]
    assert counts[3] == 0
    assert sum(counts) == 2 * 6 * 2 * 32  # two experts for every token of noised and clean rows
    few = [
        f"{'' if at else 'mlp.experts'}[{e}] ({n})"
        for at, (e, n) in enumerate((e, n) for e, n in enumerate(counts) if n < 256)
    ]
    assert "[3] (0)" in few[-1]
    said = f"{', '.join(few)}: fewer than 256 calibration tokens were routed there; calibrated on all of the layer's"
    assert f"block 1: {said}" in printed.out + printed.err
    for name in ("report.md", "report.html"):
        assert f"blocks[1]: {said}" in html.unescape((out / "report" / name).read_text()).replace("\\", "")
    assert all(record["sqnr_db"] is not None for record in records.values() if record["scheme"])
    assert "tokens" not in records["blocks[0].mlp.down"]


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llada2", "llada2.2"])
def test_a_search_by_what_a_token_touches(
    mini: Mini, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, family: str
) -> None:
    monkeypatch.chdir(tmp_path)
    model, other = checkpoint(family, tmp_path), "scheme w8 {\n  weights int8 per channel\n}\n"
    path = one_scheme(model, mini.text, W4A16, GPTQ, rules=other)
    budgets = "budget 6.5 bits, 6.8 bits active"
    settings = f'{budgets}\n  loss kl on file("{mini.text}")\n  samples 2\n  length 24\n  draws 1\n  refine 2'
    path.write_text(f"{path.read_text()}\nsearch {{\n  offer quantized, w8 on blocks[*].*\n  {settings}\n}}\n")
    found = tmp_path / "found.qs"
    assert cli.main(["search", str(path), "--out", str(found), "--device", "cpu", "--workers", "1"]) == 0
    capsys.readouterr()
    assert cli.main(["plan", str(found), "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert 5 < plan["bits_per_weight"] <= 6.5
    assert 8 * plan["active"]["bytes"] / plan["active"]["block_weights"] <= 6.8
    schemes = {module["role"]: module["scheme"] for module in plan["modules"] if ".experts[" in module["role"]}
    assert len(schemes) == 4 * 3
    assert all(len({schemes[role] for role in schemes if role.endswith(name)}) == 1 for name in ("gate", "up", "down"))


def test_an_inspection_leaves_out_what_experts_see_alone(
    mini: Mini, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = checkpoint("llada2", tmp_path)
    options = ["--samples", "2", "--length", "32", "--ratios", "0.5", "--device", "cpu", "--text", str(mini.text)]
    assert cli.main(["inspect", str(model), *options, "--out", str(tmp_path / "inspection"), "--quiet"]) == 0
    printed = capsys.readouterr().out
    assert "Inputs of experts' down are not here" in printed
    shown = {line.split("  ")[0] for line in printed.splitlines()}
    assert {"q, k, v", "o", "gate, up", "down", "shared down"} <= shown


@pytest.mark.slow
def test_transformers_loads_the_artifact(mini: Mini, tmp_path: Path) -> None:
    path = one_scheme(checkpoint("sdar_moe", tmp_path), mini.text, W8A8, RTN)
    out = tmp_path / "out"
    assert cli.main(["compile", str(path), "--out", str(out), "--device", "cpu", "--no-eval"]) == 0
    assert "AutoModel" in (out / "README.md").read_text()
    model = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    loaded, _ = qspec.load(out, device="cpu")
    ids = torch.arange(3, 67).reshape(2, 32)
    with torch.no_grad():
        assert torch.equal(model(input_ids=ids).logits, loaded(ids).logits)
