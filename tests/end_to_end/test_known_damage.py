"""What the report makes of a model with known damage, and of the same model twice."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from qspec import quantize, resources, runtime
from qspec.cli import main
from qspec.compiler import compile as compile_recipe
from qspec.data import DataSources
from qspec.evaluate import measure
from qspec.language.spec import Evaluation, NamedText, NelboRequest, TaskRequest
from qspec.report import ReportData
from qspec.report.verdict import verdict

pytestmark = pytest.mark.slow

DAMAGED = "blocks[0].mlp.down"
RECIPE = """\
qspec 1

recipe plain {
  family llada
  model  "GSAI-ML/LLaDA-8B-Instruct"
}

calibrate {
  samples 4
  length  64
}

scheme w8 {
  weights int8 per channel symmetric
}

layers blocks[*].* use w8

apply rtn() on blocks[*].*

evaluate {
  nelbo on "wikitext2" samples 24
}
"""


def report(folder: Path) -> ReportData:
    recipe = folder / "plain.qs"
    recipe.write_text(RECIPE)
    found = compile_recipe(recipe, "tiny-llada", folder / "out", "cpu").report
    assert found is not None
    return found


def order(data: ReportData) -> list[str]:
    """Roles from the largest output error to the smallest."""
    rows = [layer for layer in data.layers if layer.sqnr_db is not None]
    return [layer.role for layer in sorted(rows, key=lambda layer: layer.sqnr_db or 0.0)]


def test_verdict_tier_and_layer_ranking_follow_known_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The weight scales of one layer, times 1.5."""
    whole, damaged = tmp_path / "whole", tmp_path / "damaged"
    for folder in (whole, damaged):
        folder.mkdir()
    plain = report(whole)
    rewrite: Callable[..., quantize.Block] = quantize.rewrite_block

    def damage(*arguments: object) -> quantize.Block:
        block = rewrite(*arguments)
        linear = block.linears["mlp.down"]
        if str(linear.entry.role) == DAMAGED:
            assert linear.quantized is not None
            linear.quantized = dataclasses.replace(linear.quantized, scale=linear.quantized.scale * 1.5)
        return block

    monkeypatch.setattr(quantize, "rewrite_block", damage)
    broken = report(damaged)
    before, after = verdict(plain), verdict(broken)
    assert before.tier in ("within noise", "small")
    assert after.tier in ("medium", "large")
    assert after.headline != before.headline
    assert order(plain)[0] != DAMAGED
    assert order(broken)[0] == DAMAGED


def test_on_two_copies_of_one_model_everything_is_within_noise() -> None:
    folder = resources.standin("llada")
    model, tokenizer = runtime.load(folder, "cpu")
    wanted = Evaluation((NelboRequest(NamedText("wikitext2"), 8),), (TaskRequest("mmlu", limit=8),))
    found = measure(model, runtime.load(folder, "cpu")[0], tokenizer, wanted, DataSources(folder, folder), 0)
    assert {metric.tier for metric in found.metrics} == {"within noise"}
    assert [(flips.mean, flips.token_flips, flips.same_texts) for flips in found.flips] == [(0.0, 0.0, 8)]
    assert all(bucket.kl == pytest.approx(0, abs=1e-9) for bucket in found.kl)


def test_a_sweep_from_a_recipe_and_of_its_artifact(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """At the task's own settings the unquantized model is the reference."""
    monkeypatch.chdir(tmp_path)
    Path("plain.qs").write_text(RECIPE.replace('nelbo on "wikitext2" samples 24', "task gsm8k"))
    options = ["--limit", "1", "--device", "cpu", "--quiet", "--model", "tiny-llada"]
    assert main(["sweep", "plain.qs", "--steps", "1,0.25", "--threshold", "0.9", *options]) == 0
    assert "sweep: build/sweep/plain/sweep.html" in capsys.readouterr().out
    content = json.loads(Path("build/sweep/plain/sweep.json").read_text())
    assert [cell["settings"]["threshold"] for cell in content["cells"]] == [0.9, 0.9]
    assert content["standin"] is True
    assert main(["sweep", "build/plain", "--steps", "1", "--json", *options]) == 0
    (cell,) = json.loads(capsys.readouterr().out)["cells"]
    assert (cell["unquantized"], cell["beyond"]) == (0.0, 0.0)
