"""DiffusionGemma, tiny and random, through the commands: plan, compile in three schemes, load, measure."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import qspec
from qspec import cli
from qspec.compiler import find_inputs, read_recipe
from qspec.errors import InputError
from qspec.evaluate.likelihood import require_masks
from qspec.models.checkpoint import Checkpoint
from qspec.models.shards import INDEX, SINGLE
from qspec.progress import Quiet
from qspec.quantize import start
from qspec.workspace import Workspace
from tests.end_to_end.conftest import DUQUANT, GPTQ, RTN, W4A4, W4A16, W8A8, Mini, one_scheme
from tests.models.gemma_layout import TWO_BLOCKS, config_of, published, tiny
from tests.models.hub import hub_folder

EXPERTS = 4
OWN = "smooth(alpha = 0.5)"
SMOOTH = f"{OWN} on blocks[*].attention.{{q,k,v}}\napply {OWN} on blocks[*].mlp.*"


def checkpoint(folder: Path) -> Path:
    folder = hub_folder(folder / "model")
    model = tiny(**TWO_BLOCKS, vocab_size=1024, num_experts=EXPERTS, max_position_embeddings=48)
    save_file({name: t.float() for name, t in published(model).items()}, folder / SINGLE)
    (folder / "config.json").write_text(json.dumps(config_of(model) | {"eos_token_id": 0}))
    return folder


@pytest.mark.parametrize(
    ("scheme", "passes"),
    [
        (W4A4, f"{SMOOTH}\napply {DUQUANT}"),
        pytest.param(W4A16, f"{SMOOTH}\napply {GPTQ}".replace(OWN, "awq()"), marks=pytest.mark.slow),
        pytest.param(W8A8, RTN, marks=pytest.mark.slow),
    ],
    ids=["w4a4", "w4a16", "w8a8"],
)
def test_through_the_commands(mini: Mini, tmp_path: Path, capsys, scheme: str, passes: str) -> None:
    model, out = checkpoint(tmp_path), tmp_path / "out"
    path = one_scheme(model, mini.text, scheme, passes)
    code = cli.main(["compile", str(path), "--out", str(out), "--device", "cpu"])
    said = capsys.readouterr().err
    assert code == 0, said
    assert "copied as they are: model.encoder.vision_tower.* (" in said
    assert "transformers" not in (out / "README.md").read_text().split("## Loading")[1]
    manifest = json.loads((out / "qspec.json").read_text())
    attention = 4 + 3  # v of the block with a window alone
    assert len(manifest["modules"]) == attention + 2 * (3 + 1 + 3 * EXPERTS) + 1 + 3
    blocks = [m for m in manifest["modules"] if m["role"].startswith("blocks") and not m["role"].endswith("router")]
    assert all(module["gemm"] for module in blocks)
    (nelbo,) = json.loads((out / "report" / "report.json").read_text())["metrics"]
    assert abs(nelbo["quantized"] - nelbo["baseline"]) < {W4A16: 1.5, W8A8: 0.2, W4A4: 3}[scheme]
    plan = qspec.plan(path)
    aside = Checkpoint.open(model).aside
    index = json.loads((out / INDEX).read_text())
    assert index["metadata"]["total_size"] == plan.bytes_after + sum(stored.bytes for stored in aside.values())
    with safe_open(out / index["weight_map"][next(iter(aside))], framework="pt") as shard:
        assert all(
            torch.equal(shard.get_tensor(name), tensor) for name, tensor in Checkpoint.open(model).others().items()
        )
    for found, wanted in zip(additions(out), additions(model), strict=True):
        assert float((found - wanted).norm() / wanted.norm()) < {W4A16: 0.5, W8A8: 0.2, W4A4: 1.0}[scheme]
    assert cli.main(["eval", str(out), "--model", str(model), "--json", "--quiet", "--device", "cpu"]) == 0
    (again,) = json.loads(capsys.readouterr().out.splitlines()[-1])["metrics"]
    assert (again["baseline"], again["quantized"]) == (nelbo["baseline"], nelbo["quantized"])
    for folder in (model, out):
        command = [
            "generate",
            str(folder),
            "--prompt",
            "Tom has 3",
            "--length",
            "12",
            "--steps",
            "4",
            *("--t-min", "0.3", "--t-max", "0.9", "--stability-threshold", "2", "--confidence-threshold", "0.1"),
            "--device",
            "cpu",
        ]
        assert cli.main(command) == 0, capsys.readouterr().err


def test_every_second_calibration_row_is_told_a_first_pass(mini: Mini, tmp_path: Path) -> None:
    path = one_scheme(checkpoint(tmp_path), mini.text, W8A8, RTN)
    inputs = find_inputs(read_recipe(path), device="cpu")
    ids, masked = inputs.tokens.ids, inputs.tokens.masked
    assert ids.shape == (6, 64)
    noised, clean = ids.chunk(2, dim=1)
    assert torch.equal(noised[~masked[:, :32]], clean[~masked[:, :32]])
    assert float((noised != clean)[masked[:, :32]].float().mean()) > 0.99  # noise, of 1024 tokens
    workspace, decoder = Workspace(tmp_path / "out", inputs.facts), inputs.checkpoint.load(dtype=torch.float32)
    stream = start(inputs.plan, inputs.checkpoint, decoder, inputs.tokens, workspace, inputs.device, Quiet())
    workspace.close()
    found = torch.cat([batch.x for batch in stream.batches])
    logits = decoder.finish(decoder.rows_through(ids, decoder.calibration_context(ids)))[:, :32]
    first, told = decoder.embed_rows(ids), decoder.embed_rows(ids, decoder.told(logits / 0.8))
    torch.testing.assert_close(found[::2], first[::2])
    torch.testing.assert_close(found[1::2], told[1::2], rtol=1e-4, atol=1e-4)
    assert float((told - first)[:, :32].abs().max()) > 0.1


def test_what_the_model_does_not_have_is_refused(mini: Mini, tmp_path: Path, capsys) -> None:
    """Before anything is computed: a scale behind normed values, rotations of heads without values, rollouts' masks."""
    model = checkpoint(tmp_path)
    for passes, said in (
        (
            "smooth() on blocks[*].*",
            "smooth has nothing to fold the scale of this input into",
        ),
        (
            "quarot(residual = false) on blocks[*].*",
            "quarot cannot rotate the heads of a model",
        ),
    ):
        path = one_scheme(model, mini.text, W4A4, f"{passes}\napply {GPTQ}")
        assert cli.main(["plan", str(path)]) == 3
        assert said in capsys.readouterr().err
    rollouts = f'text rollouts(prompts = file("{mini.text}"), prompt = 8, steps = 8, chat = off)'
    path = one_scheme(model, mini.text, W8A8, RTN)
    path.write_text(path.read_text().replace(f'text    file("{mini.text}")', rollouts, 1))
    with pytest.raises(InputError, match="rollouts of a model without a mask token"):
        find_inputs(read_recipe(path), device="cpu")
    with pytest.raises(InputError, match="the model has no mask token"):
        require_masks(Checkpoint.open(model).shape)
    assert cli.main(["inspect", str(model), "--text", str(mini.text), "--device", "cpu"]) == 3
    assert "the model has no mask token" in capsys.readouterr().err


def additions(folder: Path, device: str = "cpu") -> list[torch.Tensor]:
    """What each block adds to the same input, in a pass over a noised and a clean text."""
    decoder, _ = qspec.load(folder, device=device)
    context = decoder.calibration_context(torch.arange(48, device=device)[None])
    x = torch.randn(1, 48, decoder.shape.width, generator=torch.Generator().manual_seed(0))
    x = x.to(device, decoder.embedding.weight.dtype)
    scalars = [block.part("scalar").weight for block in decoder.blocks]
    return [(block(x, context) / own - x).float().cpu() for block, own in zip(decoder.blocks, scalars, strict=True)]
