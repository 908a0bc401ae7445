"""`qspec diff`: what it says of layers, passes, settings, measurements; of files, revisions, artifacts and reports."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import pytest

from qspec import artifact, resources
from qspec.cli import main
from qspec.diagnostics import Edit, Source, Span
from qspec.difference import diff, markdown, text
from qspec.difference.changes import Difference, SettingChange
from qspec.difference.facts import requests
from qspec.evaluate.results import accuracy, nelbo
from qspec.language import versions
from qspec.language.spec import Evaluation, NelboRequest
from qspec.report import report_json
from qspec.report.data import RecipeInfo
from tests.difference.recipes import compared, version
from tests.difference.repository import Repository, repository
from tests.end_to_end.hostile import mutated as hostile
from tests.end_to_end.hostile import seal
from tests.language.fakes import ROOT, recipe
from tests.language.test_robustness import mutated
from tests.report.sample import sample_report
from tests.test_artifact import manifest

W4 = "\nscheme w4 {\n  weights int4 per channel\n  activations int4 per token\n}\n"
TWO = recipe(scheme=recipe(head="", rules="", apply="") + W4, rules="\nlayers blocks[*].* use w8a8\n{}\n")


def rules(*lines: str) -> str:
    return TWO.replace("{}", "\n".join(lines))


def differs(old: str, new: str, planned: bool = True) -> Difference:
    return compared(version(old), version(new), planned)


# --- layers ---


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (["layers blocks[*].* use w4"], [("blocks[1..5].*", 35)]),
        (["layers blocks[0].* use w4", "layers blocks[*].mlp.down use w4"], [("blocks[1..5].mlp.down", 5)]),
        (["layers blocks[0].* use w4", "layers blocks[-1].{attention,mlp}.* keep"], [("blocks[5].*", 7)]),
        (["layers blocks[0, 2..3].mlp.* use w4"], [("blocks[0].attention.*", 4), ("blocks[2, 3].mlp.*", 6)]),
        (["layers blocks[0].* use w4", "layers blocks[1, 3, 5].attention.{q,v} keep"],
         [("blocks[1, 3, 5].attention.{q,v}", 6), ("blocks[1, 3, 5].attention.k", 3)]),
    ],
)  # fmt: skip
def test_modules_are_named_by_few_selectors(lines: list[str], expected: list[tuple[str, int]]) -> None:
    """tiny-llada has 6 blocks of q, k, v, o, gate, up, down. Without q and v, k is a GEMM of its own."""
    found = differs(rules("layers blocks[0].* use w4"), rules(*lines))
    assert [(change.selector, len(change.modules)) for change in found.layers] == expected


def test_head_and_embedding_are_outside_of_blocks() -> None:
    offers = "\nsearch {{\n  offer w8a8, keep on blocks[*].*\n  {}budget 9 bits\n}}\n".format
    found = differs(recipe(offers("")), recipe(offers("offer keep on head, embedding\n")))
    assert [change.selector for change in found.layers] == ["embedding, head"]
    assert text.render(found).endswith("  2 modules  keep\n      offered     - -> keep")


def test_a_change_says_formats_bits_kernels_and_gemms() -> None:
    """W4A4 of 256 channels: 4 bits and a float32 scale a row, 4 + 32 / 256 = 4.125; of 768, 4 + 32 / 768 = 4.042."""
    found = differs(rules(), rules("layers blocks[1].attention.{q,o} use w4", "layers blocks[1].mlp.down use w4"))
    (only, lost) = found.layers
    assert (only.selector, lost.selector) == (
        "blocks[1].attention.{q,o}, blocks[1].mlp.down",
        "blocks[1].attention.{k,v}",
    )
    shown = text.render(found)
    assert "      bits        8.042..8.125 -> 4.042..4.125\n" in shown
    assert "      one GEMM    attention.q + attention.k + attention.v -> attention.k + attention.v\n" in shown
    assert "  blocks[1].attention.{k,v}  2 modules  w8a8\n" in shown


def test_blocks_of_any_model() -> None:
    """Without a config, blocks are counted from the start, and from the end, as far as a recipe does."""
    old, new = rules(), rules("layers blocks[-3..-1].mlp.down use w4", "layers blocks[0..1].* keep")
    found = differs(old, new, planned=False)
    assert [change.selector for change in found.layers] == ["blocks[0, 1].*", "blocks[-3..-1].mlp.down"]
    assert "for models of 6 blocks or more" in found.notes[0]  # 0, 1, one between, -3, -2, -1
    all_of_them = differs(old, rules("layers blocks[*].mlp.down use w4"), planned=False)
    assert [change.selector for change in all_of_them.layers] == ["blocks[*].mlp.down"]
    assert found.totals == found.kernels == ()


def test_rules_by_pattern_are_compared_as_they_are_written_where_no_model_is_here() -> None:
    old, new = (rules(f'layers module(".*{part}") use w4') for part in ("q_proj", "[q]_proj"))
    assert not differs(old, new)
    (change,) = differs(old, new, planned=False).settings
    assert (change.block, change.key) == ("layers", "rules")


def test_models_of_other_sizes(tmp_path: Path) -> None:
    both = rules().replace("family llada", "family llada, dream")
    for name, model in (("a.qs", "tiny-llada"), ("b.qs", "tiny-dream")):
        (tmp_path / name).write_text(both.replace("GSAI-ML/LLaDA-8B-Instruct", model))
    found = diff(str(tmp_path / "a.qs"), str(tmp_path / "b.qs"))
    assert found.models == ("tiny-llada", "tiny-dream")
    assert found.settings == (
        SettingChange("recipe", "model", '"tiny-llada" revision "main"', '"tiny-dream" revision "main"'),
    )
    assert "bytes.before" in {change.key for change in found.totals}


# --- passes and settings ---

SMOOTH, ROTATE, GPTQ = "smooth(alpha = 0.5)", "rotate_duquant(block = 32)", "gptq()"


def passes(*calls: str) -> str:
    return recipe(apply="\n" + "\n".join(f"apply {call} on blocks[*].*" for call in calls) + "\n")


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ([GPTQ], [SMOOTH, GPTQ], [("added", None, 1)]),
        ([SMOOTH, GPTQ], [GPTQ], [("removed", 1, None)]),
        ([SMOOTH, GPTQ], ["smooth(alpha = 0.75)", GPTQ], [("changed", 1, 1)]),
        ([GPTQ], ["gptq(damp = 0.01)"], []),
        ([GPTQ], ["rtn()"], [("removed", 1, None), ("added", None, 1)]),
        ([SMOOTH, ROTATE, GPTQ], ["smooth(alpha = 0.75)", SMOOTH, ROTATE, GPTQ], [("added", None, 1)]),
        ([SMOOTH, "awq(clip = false)", GPTQ], ["awq(clip = false)", SMOOTH, GPTQ], [("moved", 2, 1)]),
    ],
)
def test_passes(before: list[str], after: list[str], expected: list[tuple[str, int | None, int | None]]) -> None:
    found = differs(passes(*before), passes(*after)).passes
    assert sorted((c.kind, c.place_before, c.place_after) for c in found) == sorted(expected)


def test_passes_are_compared_by_what_they_select() -> None:
    spelled = recipe().replace("on blocks[*].*", "on blocks[*].{attention,mlp}.*")
    parts = recipe().replace("apply rtn() on blocks[*].*", "apply rtn() on blocks[*].attention.*, blocks[0..5].mlp.*")
    assert not differs(recipe(), spelled)
    assert not differs(recipe(), parts)
    assert [change.kind for change in differs(recipe(), parts, planned=False).passes] == ["changed"]


def test_settings_and_what_they_print() -> None:
    old = recipe("\ncalibrate {\n  samples 8\n}\nevaluate {\n  task mmlu { limit 8 }\n}\n")
    new = recipe('\ncalibrate {\n  samples 9\n}\nevaluate {\n  task mmlu { limit 9 }\n  nelbo on "c4"\n}\n')
    found = differs(old, new, planned=False)
    assert found.settings == (
        SettingChange("calibrate", "samples", "8", "9"),
        SettingChange("task mmlu", "limit", "8", "9"),
        SettingChange('nelbo "c4"', "", None, "samples 64"),
    )
    assert text.render(found).split("\n\nnote")[0] == (
        'r.qs -> r.qs\n\nsettings\n  calibrate samples  8 -> 9\n  task mmlu limit  8 -> 9\n  + nelbo "c4"  samples 64'
    )


def test_a_scheme_under_another_name() -> None:
    found = differs(recipe(), recipe().replace("w8a8", "w8"), planned=False)
    assert [(c.block, c.before is None) for c in found.settings] == [("scheme w8a8", False), ("scheme w8", True)]
    assert "blocks[*].*  w8a8 -> w8\n" in text.render(found)


def test_markdown_holds_what_it_shows() -> None:
    found = replace(
        differs(recipe(), recipe().replace("rtn()", "gptq()")), old="a|`b`<x>", notes=("<img src=x> *bold*",)
    )
    shown = markdown.render(found)
    assert "**``a|`b`<x>`` → `r.qs`** on `tiny-llada`\n" in shown
    assert "- removed `apply rtn() on blocks[*].*`\n- added `apply gptq() on blocks[*].*`\n" in shown
    assert "<sub>\\<img src=x\\> \\*bold\\*</sub>" in shown
    assert found._repr_markdown_() == shown
    assert str(found) == text.render(found)


# --- where OLD and NEW come from ---


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Repository:
    """A recipe with its base in recipes/, and one at the top; committed, then changed in the working tree."""
    made = repository(tmp_path)
    made.write("recipes/base.qs", rules())
    made.write("recipes/r.qs", 'qspec 1\n\nextends "base.qs"\n')
    made.write("top.qs", 'qspec 1\n\nextends "recipes/base.qs"\n')
    made.commit("one")
    made.write("recipes/base.qs", rules("layers blocks[0].mlp.down use w4"))
    monkeypatch.chdir(made.folder)
    return made


def run(*arguments: str) -> int:
    return main(["diff", *arguments, "--model", "tiny-llada"])


@pytest.mark.usefixtures("scratch")
def test_a_revision_has_its_own_bases(capsys: pytest.CaptureFixture[str]) -> None:
    for old, new in (("main:recipes/r.qs", "recipes/r.qs"), ("HEAD:top.qs", "top.qs"), (":./top.qs", "./top.qs")):
        assert run(old, new) == 0
        assert "blocks[0].mlp.down  1 module  w8a8 -> w4\n" in capsys.readouterr().out
    os.chdir("recipes")
    assert run("main:./r.qs", "r.qs", "--json") == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["differs"], shown["layers"][0]["modules"][0]["role"]) == (True, "blocks[0].mlp.down")
    assert run("HEAD:recipes/r.qs", "HEAD:recipes/r.qs", "--exit-code") == 0
    assert capsys.readouterr().out == "no difference: both mean the same\n"
    assert run("HEAD:./r.qs", "r.qs", "--exit-code") == 2


def test_a_mistake_in_a_revision_is_shown_with_its_line(
    scratch: Repository, capsys: pytest.CaptureFixture[str]
) -> None:
    scratch.write("recipes/base.qs", rules().replace("rtn", "rnt"))
    scratch.commit("two")
    assert run("HEAD:recipes/r.qs", "HEAD~1:recipes/r.qs") == 1
    assert " --> HEAD:recipes/base.qs:21:7\n" in capsys.readouterr().err
    scratch.write("top.qs", rules("layers blocks[31].* use w4"))
    scratch.commit("three")
    assert run("HEAD:top.qs", "top.qs") == 1
    error = capsys.readouterr().err
    assert "there is no block 31" in error
    assert " --> HEAD:top.qs:19:15\n" in error
    assert "layers blocks[31].* use w4\n" in error


def test_an_upgrade_of_the_language_changes_no_meaning(
    scratch: Repository, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """From a version 0 whose word for `layers` was `rule`, of a recipe with its base."""

    def upgrade(source: Source) -> list[Edit]:
        words = re.finditer("^rule", source.text, re.MULTILINE)
        return [Edit(Span(word.start(), word.end(), source.path), "layers") for word in words]

    monkeypatch.setattr(versions, "UPGRADES", {0: upgrade})
    for name in ("recipes/r.qs", "recipes/base.qs"):
        text = (scratch.folder / name).read_text()
        scratch.write(name, text.replace("qspec 1", "qspec 0").replace("layers ", "rule "))
    scratch.commit("an older version")
    assert main(["fix", "recipes"]) == 0
    capsys.readouterr()
    assert run("HEAD:recipes/r.qs", "recipes/r.qs") == 0
    assert capsys.readouterr().out == "no difference: both mean the same\n"


@pytest.mark.parametrize(
    ("old", "what"),
    [
        ("main:none.qs", "main has no file none.qs"),
        ("main:r.qs", "main has no file r.qs"),
        ("nobranch:top.qs", "git knows no revision 'nobranch'"),
        ("main:recipes", "recipes is a folder in main"),
        ("--all:top.qs", "this is no revision and path"),
        ("main:a\nb", "this is no revision and path"),
        ("recipes", "this folder holds no compiled model"),
        ("none.qs", "the recipe cannot be read: No such file or directory"),
        ("none.json", "the report's data cannot be read: No such file or directory"),
        ("x" * 5000, "this is no path"),
        ("a\0b", "this is no path"),
        ("report.json", "not the data of a report"),
        ("/dev/zero", "the recipe cannot be read: it is not a regular file"),
    ],
)
def test_what_cannot_be_read(old: str, what: str, scratch: Repository, capsys: pytest.CaptureFixture[str]) -> None:
    scratch.write("report.json", "[1]")
    assert main(["diff", "top.qs", "--", old] if old.startswith("-") else ["diff", old, "top.qs"]) == 3
    error = capsys.readouterr().err
    assert error.startswith(f"qspec: {what}")
    assert "Traceback" not in error


@pytest.mark.usefixtures("scratch")
def test_a_path_from_the_working_folder_is_said_to_be_one(capsys: pytest.CaptureFixture[str]) -> None:
    os.chdir("recipes")
    assert main(["diff", "main:r.qs", "r.qs"]) == 3
    assert "write main:recipes/r.qs" in capsys.readouterr().err


def test_outside_of_git_and_without_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    assert main(["diff", "main:r.qs", "r.qs"]) == 3
    assert "qspec: this is not a git repository\n" in capsys.readouterr().err
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["diff", "main:r.qs", "r.qs"]) == 3
    assert "qspec: git is not installed\n" in capsys.readouterr().err


def test_binary_and_large_files(scratch: Repository, capsys: pytest.CaptureFixture[str]) -> None:
    (scratch.folder / "binary.qs").write_bytes(bytes(range(256)))
    scratch.write("large.qs", "# " + "x" * (1 << 20))
    scratch.git("add", "-A")
    for name, code, word in (("binary.qs", 1, "QS001"), ("large.qs", 1, "QS002")):
        assert main(["diff", name, "top.qs"]) == code
        assert word in capsys.readouterr().err
    assert main(["diff", ":binary.qs", "top.qs"]) == 1
    assert "QS001" in capsys.readouterr().err
    assert main(["diff", ":large.qs", "top.qs"]) == 3
    assert "the file has 1048578 bytes, and 1048576 are the most" in capsys.readouterr().err


def compiled(folder: Path, recipe: str, losses: list[float], right: int = 40) -> Path:
    """What `diff` reads of an artifact of tiny-llada: manifest, config and report. losses: the NELBO's, of an
    unquantized model that has 1, 2, 3. right: answers, of an unquantized model that has all 40 right."""
    (folder / "report").mkdir(parents=True)
    shutil.copy(resources.standin("llada") / "config.json", folder)
    spec = version(recipe).spec
    data = sample_report(1)
    answers = [True] * right + [False] * (40 - right)
    metrics = (
        nelbo("wikitext2", "text", [1.0, 2.0, 3.0], losses),
        accuracy("mmlu", "mmlu", "exact_match", [True] * 40, answers),
    )
    report = report_json(replace(data, recipe=RecipeInfo(spec.name, spec.text), metrics=metrics))
    (folder / "report" / "report.json").write_text(json.dumps(report))
    artifact.seal_report(folder)
    record = json.loads(manifest({}).text()) | {"recipe": spec.text}
    seal(folder, record | {"model": record["model"] | {"id": "tiny-llada", "standin": True}})
    return folder


def test_artifacts_and_reports(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old = compiled(tmp_path / "old", rules(), [1.25, 2.25, 3.25])
    new = compiled(tmp_path / "new", rules("layers blocks[0].mlp.down use w4"), [1.5, 2.5, 3.5])
    for one in (diff(str(old), str(new)), diff(str(old), str(new / "report" / "report.json"))):
        assert one.models == ("tiny-llada", "tiny-llada")
        assert [change.selector for change in one.layers] == ["blocks[0].mlp.down"]
        (measure,) = one.measured
        assert measure.before is not None
        assert measure.after is not None
        assert (measure.task, measure.metric) == ("wikitext2", "nelbo")
        assert (measure.before.score, measure.after.score) == (2.25, 2.5)
        assert measure.interval == (0.25, 0.25)  # on each item
        assert measure.noise is False
        shown = "NELBO  2.2500 (drop 12.5 %, n 3) -> 2.5000 (drop 25.0 %, n 3)  +0.2500 to +0.2500"
        assert f"measured\n  wikitext2, {shown}\n" in str(one)
        assert "| wikitext2 | NELBO | 2.2500 (drop 12.5 %, n 3) | 2.5000 (drop 25.0 %, n 3) |" in markdown.render(one)
    few, many = (
        diff(str(old), str(compiled(tmp_path / f"{right}", rules(), [1.25, 2.25, 3.25], right))).measured
        for right in (39, 30)
    )
    assert [(m.task, m.noise) for m in (*few, *many)] == [("mmlu", True), ("mmlu", False)]
    path = tmp_path / "r.qs"
    path.write_text(rules())
    found = diff(str(path), str(old))
    assert not found
    assert found.notes == (
        "GSAI-ML/LLaDA-8B-Instruct is not on this machine: planned for tiny-llada",
        f"only {old} was measured",
    )
    content = json.loads((new / "qspec.json").read_text())
    seal(new, content | {"format": content["format"] - 1})
    assert main(["diff", str(old), str(new)]) == 3
    assert f"qspec.json is not a manifest of format {content['format']}" in capsys.readouterr().err


def test_recipes_are_compared_without_torch(tmp_path: Path) -> None:
    """Also with a model's config, whose bits, bytes and times are compared."""
    (tmp_path / "a.qs").write_text(rules())
    (tmp_path / "b.qs").write_text(rules("layers blocks[0].* use w4"))
    code = (
        "import sys; from qspec.cli import main; assert main(['diff', 'a.qs', 'b.qs', '--model', 'tiny-llada']) == 0; "
        "assert not {'torch', 'triton', 'numpy', 'transformers'} & set(sys.modules)"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "predicted time, full_sequence" in done.stdout


def test_the_largest_recipes(tmp_path: Path) -> None:
    many = [f"layers blocks[{n % 6}].mlp.down use {'w4' if n % 2 else 'w8a8'}" for n in range(300)]
    (tmp_path / "a.qs").write_text(rules(*many))
    (tmp_path / "b.qs").write_text(rules(*many, "layers blocks[3].mlp.down keep"))
    found = diff(str(tmp_path / "a.qs"), str(tmp_path / "b.qs"), "tiny-llada")
    assert [(c.selector, len(c.modules)) for c in found.layers] == [("blocks[3].mlp.down", 1)]


def test_requests_about_one_thing_are_told_apart() -> None:
    """Several may be about one text or task, as gates of one task in percent and in points would be."""

    @dataclass(frozen=True)
    class Requests:
        nelbo: tuple[NelboRequest, ...]

    found = [
        requests(cast(Evaluation, Requests(tuple(NelboRequest(samples=count) for count in counts))))
        for counts in ((4,), (4, 8))
    ]
    assert found == [
        {'nelbo "wikitext2"': {"samples": "4"}},
        {'nelbo "wikitext2" samples 4': {"samples": "4"}, 'nelbo "wikitext2" samples 8': {"samples": "8"}},
    ]


# --- whatever is given ---


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_nobody_sees_a_traceback(seed: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of mutated recipes, in `git diff` too, and of manifests and reports that somebody changed and sealed again."""
    draw = random.Random(seed)
    good, bad, codes = tmp_path / "good.qs", tmp_path / "bad.qs", Counter[int]()
    good.write_text(rules("layers blocks[0].mlp.down use w4"))
    for _ in range(150):
        bad.write_bytes(mutated(good.read_text(), draw))
        codes[main(["diff", str(good), str(bad), "--model", "tiny-llada"])] += 1
        sides = [word for path in (good, bad) for word in (str(path), "0" * 40, "100644")]
        assert main(["git-diff", "r.qs", *draw.choice((sides, sides[3:] + sides[:3]))]) == 0
    folder = compiled(tmp_path / "compiled", rules(), [1.25, 2.25, 3.25])
    manifest, report = (json.loads((folder / name).read_text()) for name in ("qspec.json", "report/report.json"))
    changed = tmp_path / "report.json"
    for _, content in draw.sample([*hostile(manifest)], 150):
        with contextlib.suppress(UnicodeEncodeError, ValueError):
            seal(folder, content)
            codes[main(["diff", str(good), str(folder)])] += 1
    for _, content in draw.sample([*hostile(report)], 150):
        changed.write_text(json.dumps(content))
        codes[main(["diff", str(good), str(changed), "--json"])] += 1
    assert set(codes) == {0, 1, 3}
    assert "Traceback" not in capsys.readouterr().err


def test_experts_of_a_model_that_is_not_here(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In stretches between the numbers that selectors name, behind the blocks that are dense."""
    text = (
        'qspec 1\n\nrecipe r {\n  family llada2\n  model "nobody/nothing"\n}\n\n'
        "scheme w4 {\n  weights int4 per group 128\n}\n\nlayers blocks[*].* use w4\n"
    )
    old, new = tmp_path / "old.qs", tmp_path / "new.qs"
    old.write_text(f"{text}\napply rtn() on blocks[*].*\n")
    new.write_text(f"{text}layers blocks[*].mlp.experts[3..5].down keep\n\napply rtn() on blocks[*].*\n")
    assert main(["diff", str(old), str(new)]) == 0
    assert "blocks[1..-1].mlp.experts[3..5].down  w4 -> keep" in capsys.readouterr().out
