"""QuaRot through the whole compiler: a rotated residual stream on disk, what the plan says of it, and both loaders."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel

import qspec
import qspec.hf
from qspec import cli
from qspec.compiler import Artifact
from qspec.models.shards import INDEX
from qspec.plan.data import plan_data
from tests.end_to_end.conftest import NO_REPORT, RECIPE, Mini

RULES = "layers blocks[*].*         use w4a4\nlayers blocks[0].mlp.gate  keep\n"
PASSES = "apply quarot() on blocks[*].*\napply {quantizer} on blocks[*].*\n"
IDS = torch.arange(1, 25).reshape(2, 12)


def recipe(mini: Mini, name: str, passes: str, rules: str = RULES) -> Path:
    """The small recipe with other rules and passes, beside it."""
    head, rest = RECIPE.format(model=mini.model).split("layers ", 1)
    path = mini.recipe.parent / f"{name}.qs"
    path.write_text(f"{head}{rules}\n{passes}\nevaluate" + rest.split("\nevaluate", 1)[1])
    return path


@pytest.fixture(scope="module")
def compiled(mini: Mini, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    path = recipe(mini, "quarot", PASSES.format(quantizer="gptq()"))
    return qspec.compile(path, out=tmp_path_factory.mktemp("out") / "quarot", device="cpu", options=NO_REPORT)


def stored(folder: Path) -> dict[str, torch.Tensor]:
    return {name: t for shard in folder.glob("*.safetensors") for name, t in load_file(shard).items()}


def test_true_bits_count_both_matrices_and_the_permutation(compiled: Artifact) -> None:
    index = json.loads((compiled.path / INDEX).read_text())
    assert index["metadata"]["total_size"] == compiled.plan.bytes_after
    transforms = [t for name, t in stored(compiled.path).items() if ".transform." in name]
    bits = sum(t.numel() * t.element_size() * 8 for t in transforms)
    assert bits == 2 * (16 * 16 * 16 + 12 * 12 * 16 + 192 * 32)  # two blocks: H16, H12 in float16, int32 positions
    linears = 4 * 64 * 64 + 3 * 64 * 192
    codes = 4 * (2 * linears - 64 * 192) + 16 * 64 * 192  # one gate is kept
    scales = 32 * (2 * (4 * 64 + 2 * 192 + 64) - 192)
    assert compiled.plan.bits_per_weight == pytest.approx((codes + scales + bits) / (2 * linears))


def test_the_plan_shows_the_rotation(compiled: Artifact, mini: Mini, capsys: pytest.CaptureFixture[str]) -> None:
    rows = {m["role"]: m for m in plan_data(compiled.plan)["modules"]}
    assert rows["blocks[1].mlp.down"]["rotations"] == [16, 12]
    assert rows["blocks[1].mlp.down"]["kernel"].startswith("row_rotate_permute_rotate16x12_int4_token_sym")
    assert rows["blocks[0].mlp.down"]["kernel"].startswith("row_silu_mul_rotate_permute_rotate16x12_int4_token_sym")
    assert {role for role, m in rows.items() if m["rotations"]} == {"blocks[0].mlp.down", "blocks[1].mlp.down"}
    written = str(mini.recipe.parent / "quarot.qs")
    assert cli.main(["why", written, "blocks[0].mlp.down"]) == 0
    assert "input       rotated online in blocks of 16, permuted, in blocks of 12" in capsys.readouterr().out
    for kept in ("head", "blocks[0].mlp.gate"):
        assert cli.main(["why", written, kept]) == 0
        assert "apply quarot() on blocks[*].*" in capsys.readouterr().out


def test_embedding_norms_and_kept_linears_are_stored_rotated(compiled: Artifact, mini: Mini) -> None:
    before, after = stored(mini.model), stored(compiled.path)
    start = "model.transformer."
    assert torch.equal(after[f"{start}ln_f.weight"], torch.ones(64))
    assert torch.equal(after[f"{start}blocks.1.ff_norm.weight"], torch.ones(64))
    for name in (f"{start}wte.weight", f"{start}ff_out.weight", f"{start}blocks.0.ff_proj.weight"):
        assert after[name].dtype == torch.bfloat16
        assert not torch.equal(after[name], before[name])
        # an orthogonal Q keeps the angles between rows; gains of a fresh model are ones
        one, other = (t[name].double() @ t[name].double().T for t in (before, after))
        assert (other - one).norm() / one.norm() < 5e-3
    assert (compiled.path / "config.json").is_file()


def test_both_loaders_compute_the_same(compiled: Artifact) -> None:
    ours, _ = qspec.load(compiled.path, device="cpu")
    theirs, info = AutoModel.from_pretrained(compiled.path, dtype=torch.float32, output_loading_info=True)
    with torch.no_grad():
        assert torch.equal(ours(IDS).logits, theirs(input_ids=IDS).logits)
    assert not any(info.values())


def test_rounding_is_all_that_it_loses(mini: Mini, tmp_path: Path) -> None:
    """At 8 bits the logits are those of the checkpoint but for rounding."""
    path = recipe(mini, "quarot8", PASSES.format(quantizer="rtn()"), "layers blocks[*].* use w8a8\n")
    made = qspec.compile(path, out=tmp_path / "quarot8", device="cpu", options=NO_REPORT)
    model, _ = qspec.load(made.path, device="cpu")
    plain, _ = qspec.load(mini.model, device="cpu", dtype=torch.float32)
    with torch.no_grad():
        exact, got = plain(IDS).logits, model(IDS).logits
    assert (got - exact).norm() / exact.norm() < 0.03


def test_across_heads_runs_as_planned(mini: Mini, tmp_path: Path) -> None:
    """The rotation of o's input, 64 channels of four heads, is in plan, bits, tensors and the loaded model."""
    passes = "apply quarot(heads = across) on blocks[*].*\napply rtn() on blocks[*].*\n"
    path = recipe(mini, "quarot_across", passes, "layers blocks[*].* use w8a8\n")
    made = qspec.compile(path, out=tmp_path / "across", device="cpu", options=NO_REPORT)
    rows = {m["role"]: m for m in plan_data(made.plan)["modules"]}
    assert rows["blocks[1].attention.o"]["rotations"] == [64]
    assert rows["blocks[1].attention.o"]["kernel"].startswith("row_rotate64_int8_token_sym")
    index = json.loads((made.path / INDEX).read_text())
    assert index["metadata"]["total_size"] == made.plan.bytes_after
    assert stored(made.path)["model.transformer.blocks.0.attn_out.transform.rotation0"].shape == (64, 64)
    model, _ = qspec.load(made.path, device="cpu")
    plain, _ = qspec.load(mini.model, device="cpu", dtype=torch.float32)
    with torch.no_grad():
        exact, got = plain(IDS).logits, model(IDS).logits
    assert (got - exact).norm() / exact.norm() < 0.03


def test_a_size_without_a_rotation_is_an_error_of_the_plan(
    mini: Mini, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = recipe(mini, "quarot_sizes", PASSES.format(quantizer="rtn()"))
    config = json.loads((mini.model / "config.json").read_text())
    for name, change in (
        ("ffn", {"mlp_hidden_size": 1000}),
        ("width", {"d_model": 1888, "n_kv_heads": 59, "n_heads": 59}),
    ):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(config | change))
        code = cli.main(["plan", str(path), "--model", str(folder)])
        printed = capsys.readouterr()
        message = printed.out + printed.err
        assert "Traceback" not in message
        if name == "ffn":
            assert code == 1
            assert (
                "error[QS043]: `quarot` cannot run with scheme `w4a4` on `blocks[0].mlp.down`: no Hadamard" in message
            )
            assert message.count("QS043") == 1
        else:
            assert code == 3
            assert "no Hadamard matrix of order 1888" in message
