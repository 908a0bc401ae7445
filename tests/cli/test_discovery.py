"""qspec new, list, explain, completion, and plans of models that are not here."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from huggingface_hub import constants

from qspec import passes
from qspec.cli import COMMANDS, main
from qspec.formats import NUMBER_FORMATS
from qspec.language import load_recipe
from qspec.language.explanations import explanations
from qspec.language.reference import statements
from qspec.language.spec import TASKS
from qspec.models.known import known_models
from qspec.models.registry import FAMILIES, family_of
from qspec.planned import find_config, planned
from tests.language.fakes import ROOT, codes, recipe
from tests.models.block_layout import FAST_DLLM_7B, SDAR_1_7B
from tests.models.dream_layout import DREAM_7B
from tests.models.expert_layout import LLADA2_2, LLADA2_FLASH, LLADA2_MINI, LLADA_MOE_7B, SDAR_30B
from tests.models.gemma_layout import PUBLISHED
from tests.models.layout import LLADA_8B

SCHEMES = ("w4a4", "w8a8", "w4a8", "w3a4", "w4a16", "w3a16", "w2a16", "w8a16", "fp8_e4m3", "nvfp4", "mxfp4")


# --- new ---


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_new_recipe_has_no_warnings_and_a_plan(
    family: str, scheme: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["new", "mine", "--family", family, "--scheme", scheme]) == 0
    assert capsys.readouterr().out == "mine.qs\nnext: qspec plan mine.qs; qspec compile mine.qs\n"
    assert main(["check", "--strict", "mine.qs"]) == 0
    assert main(["fmt", "--check", "mine.qs"]) == 0
    plan = planned("mine.qs", None, {}).plan
    assert plan.family == family
    quantized = [m for m in plan.modules if m.scheme is not None]
    assert [m.entry.role for m in quantized] == [m.entry.role for m in plan.modules if not m.entry.only_kept]
    weights = 4 if "4" in scheme[:5] and "fp8" not in scheme else 8
    wanted = int(scheme[1]) if scheme[0] == "w" else weights
    assert {m.scheme.weights.number.bits for m in quantized if m.scheme} == {wanted}


@pytest.mark.slow
@pytest.mark.parametrize(("family", "scheme"), [("llada", "w4a4"), ("dream", "w4a16")])
def test_a_new_recipe_compiles_on_the_stand_in(
    family: str, scheme: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With less calibration than it asks for."""
    monkeypatch.chdir(tmp_path)
    assert main(["new", "mine", "--family", family, "--scheme", scheme]) == 0
    text = Path("mine.qs").read_text()
    for long, short in (("samples 128", "samples 4"), ("steps = 256", "steps = 4")):
        text = text.replace(long, short)
    Path("mine.qs").write_text(text)
    assert main(["compile", "mine.qs", "--device", "cpu", "--quiet", "--no-eval"]) == 0
    assert (tmp_path / "build" / "mine" / "qspec.json").is_file()


def test_new_replaces_nothing_and_refuses_what_is_no_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.qs").write_text("precious")
    assert main(["new", "mine"]) == 3
    assert (tmp_path / "mine.qs").read_text() == "precious"
    for wrong in (
        ["new", "1st"],
        ["new", "a b"],
        ["new", "x" * 65],
        ["new", "y", "--model", 'a"b'],
        ["new", "z", "--scheme", "w9a9"],
    ):
        assert main(wrong) == 2, wrong
    assert [path.name for path in tmp_path.iterdir()] == ["mine.qs"]
    assert "wNaM" in capsys.readouterr().err
    assert main(["new", "sub/deeper", "--model", "me/mine"]) == 0
    assert load_recipe("sub/deeper.qs", passes.available()).spec.model.id == "me/mine"


# --- list ---


def listed(kind: str, capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    """What is listed, which is the same as text and as JSON."""
    assert main(["list", kind]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert main(["list", kind, "--json"]) == 0
    found = {one["name"]: one["about"] for one in json.loads(capsys.readouterr().out)}
    assert [line.split(maxsplit=1) for line in lines] == [[name, about] for name, about in found.items()]
    assert all(found.values())
    return found


def test_lists_are_complete(capsys: pytest.CaptureFixture[str]) -> None:
    assert set(listed("passes", capsys)) == set(passes.BUILT_IN)
    assert set(listed("formats", capsys)) == set(NUMBER_FORMATS)
    assert set(listed("families", capsys)) == set(FAMILIES)
    assert set(listed("tasks", capsys)) == set(TASKS)
    standins = {f"tiny-{family}" for family in ("llada", "dream", "fast_dllm", "sdar_moe")}
    assert set(listed("models", capsys)) == {*known_models(), *standins}
    recipes = {str(path.relative_to(ROOT)) for path in (ROOT / "recipes").rglob("*.qs")}
    assert set(listed("recipes", capsys)) == recipes
    assert main(["list", "nothing"]) == 2


# --- explain ---


@pytest.mark.parametrize("word", [*explanations(), *statements(), *passes.BUILT_IN, *NUMBER_FORMATS, *TASKS])
def test_everything_with_a_name_is_explained(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", word]) == 0
    first, *rest = capsys.readouterr().out.splitlines()
    assert first.startswith(f"{word}: ")
    assert len("".join(rest)) > 40
    assert not any(line.startswith("<!--") for line in rest)


def test_explanations_say_what_a_recipe_can(capsys: pytest.CaptureFixture[str]) -> None:
    main(["explain", "gptq"])
    assert (
        "  damp: added to the Hessian, times the mean of its diagonal: above 0, below 1; default 0.01\n"
        in capsys.readouterr().out
    )
    main(["explain", "param"])
    assert "`--set NAME=VALUE` changes" in capsys.readouterr().out
    main(["explain", "samples"])
    assert [line.split(":")[0] for line in capsys.readouterr().out.splitlines()] == [
        "samples, in calibrate",
        "samples, in search",
    ]
    assert main(["explain", "gptw"]) == 2
    assert "did you mean gptq?" in capsys.readouterr().err


def test_a_format_is_explained_in_a_spelling_that_has_a_kernel(capsys: pytest.CaptureFixture[str]) -> None:
    for name in NUMBER_FORMATS:
        main(["explain", name])
        spelled = capsys.readouterr().out.rpartition("In a scheme: ")[2]
        found = codes(recipe(scheme=f"\nscheme w8a8 {{\n  {spelled}}}\n"))
        assert found == [], name


# --- completion ---


def completed(script: Path, *words: str) -> list[str]:
    """What bash offers for the last word."""
    line = " ".join(f"'{word}'" for word in words)
    code = f'source {script}; COMP_WORDS=({line}); COMP_CWORD={len(words) - 1}; _qspec; echo "${{COMPREPLY[@]}}"'
    return subprocess.run(["bash", "-c", code], capture_output=True, text=True, check=True).stdout.split()


def test_bash_completes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "bash"]) == 0
    script = tmp_path / "qspec.bash"
    script.write_text(capsys.readouterr().out)
    assert set(completed(script, "qspec", "")) == set(COMMANDS)
    assert completed(script, "qspec", "ch") == ["check", "chat"]
    assert set(completed(script, "qspec", "compile", "--lo")) == {"--locked", "--locked=strict"}
    assert completed(script, "qspec", "compile", "x.qs", "--device", "c") == ["cpu", "cuda"]
    assert completed(script, "qspec", "list", "f") == ["formats", "families"]
    assert completed(script, "qspec", "check", "") == []  # files, by bash itself


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_read_their_scripts(shell: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    text = capsys.readouterr().out
    assert all(command in text for command in COMMANDS)
    assert "text json github" in text
    if shutil.which(shell) is None:
        return
    script = tmp_path / f"qspec.{shell}"
    script.write_text(text)
    subprocess.run([shell, "-n", str(script)], check=True, env=os.environ | {"HOME": str(tmp_path)})


# --- known models ---


def test_shipped_configs_are_the_published_ones() -> None:
    published = {
        "llada": [LLADA_8B],
        "dream": [DREAM_7B],
        "sdar": [SDAR_1_7B],
        "fast_dllm": [FAST_DLLM_7B],
        "llada_moe": [LLADA_MOE_7B],
        "sdar_moe": [SDAR_30B],
        "llada2": [LLADA2_MINI, LLADA2_FLASH, LLADA2_MINI | LLADA2_2, LLADA2_FLASH | LLADA2_2],
        "diffusion_gemma": [PUBLISHED],
    }
    for config in known_models().values():
        family = family_of(config)
        (whole,) = (one for one in published[family.name] if config == {key: one.get(key) for key in config})
        assert family.shape(config) == family.shape(whole)
    assert {family_of(config).name for config in known_models().values()} == set(FAMILIES)


def test_a_model_that_is_not_here_is_planned_for_and_that_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By its own config, where there is one; of an unknown model the stand-in's."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    path = ROOT / "recipes" / "llada_w4a4.qs"
    assert main(["plan", str(path)]) == 0
    out = capsys.readouterr().out
    assert out.startswith(
        "GSAI-ML/LLaDA-8B-Instruct is not on this machine: planned from its config.json as it ships with qspec\n"
    )
    assert "llada_w4a4: llada, 32 blocks, width 4096, ffn 12288\n" in out
    assert main(["plan", str(path), "--model", "Dream-org/Dream-v0-Base-7B"]) == 3  # a recipe for llada
    (tmp_path / "other.qs").write_text(path.read_text().replace("LLaDA-8B-Instruct", "LLaDA-unheard-of"))
    found = planned(tmp_path / "other.qs", None, {})
    assert (
        found.plan.notice
        == "GSAI-ML/LLaDA-unheard-of is not on this machine: planning for the bundled stand-in tiny-llada instead"
    )
    assert found.plan.shape.layers == 6
    assert find_config("owner/nobody") is None
