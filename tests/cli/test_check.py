"""`qspec check`: formats, exit codes, what it imports and how fast it is."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from qspec.cli import main
from tests.language.fakes import ROOT, recipe

MAIN_RECIPE = ROOT / "recipes" / "llada_w4a4.qs"
HEAVY = (
    "torch",
    "transformers",
    "numpy",
    "rich",
    "typer",
    "jinja2",
    "triton",
    "safetensors",
)


def write(path: Path, text: str) -> str:
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_all_recipes_pass(capsys: pytest.CaptureFixture[str]) -> None:
    """Without warnings, or with a comment that gives the reason."""
    count = len(list((ROOT / "recipes").rglob("*.qs")))
    assert count >= 22
    assert main(["check", "--strict", str(ROOT / "recipes")]) == 0
    assert main(["fmt", "--check", str(ROOT / "recipes")]) == 0
    assert capsys.readouterr().out == f"no errors in {count} recipes\n"


def test_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "bad.qs", recipe(apply="\napply rnt() on blocks[*].*\n"))
    write(tmp_path / "good.qs", recipe())
    assert main(["check", "bad.qs", "good.qs"]) == 1
    out = capsys.readouterr().out
    assert "error[QS023]: there is no pass `rnt`\n  --> bad.qs:15:7\n" in out
    assert out.endswith("1 error in 2 recipes\n")
    assert "\x1b" not in out


def test_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "bad.qs", recipe(apply="\napply rnt() on blocks[*].*\n"))
    assert main(["check", "--format", "json", path]) == 1
    (found,) = json.loads(capsys.readouterr().out)
    start = recipe().index("rtn")
    assert found == {
        "code": "QS023",
        "severity": "error",
        "message": "there is no pass `rnt`",
        "hint": "did you mean `rtn`?",
        "path": path,
        "start": {"line": 15, "column": 7, "offset": start},
        "end": {"line": 15, "column": 10, "offset": start + 3},
        "edits": [
            {
                "path": path,
                "start": {"line": 15, "column": 7, "offset": start},
                "end": {"line": 15, "column": 10, "offset": start + 3},
                "replacement": "rtn",
            }
        ],
        "notes": [],
    }


def test_github(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "a,b%.qs", recipe(apply="\napply rnt() on blocks[*].*\n"))
    assert main(["check", "--format", "github", "a,b%.qs"]) == 1
    assert capsys.readouterr().out == (
        "::error file=a%2Cb%25.qs,line=15,endLine=15,col=7,endColumn=10,title=QS023"
        "::there is no pass `rnt`. Next: did you mean `rtn`?\n"
    )


def test_a_warning_is_no_failure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rules = "\nlayers blocks[0].* keep\nlayers blocks[*].* use w8a8\n"
    assert main(["check", write(tmp_path / "w.qs", recipe(rules=rules))]) == 0
    assert capsys.readouterr().out.endswith("1 warning in 1 recipe\n")


def test_a_missing_file_is_exit_3_and_the_others_are_checked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = write(tmp_path / "good.qs", recipe())
    assert main(["check", str(tmp_path / "none.qs"), good]) == 3
    captured = capsys.readouterr()
    assert captured.out == "no errors in 1 recipe\n"
    assert "cannot be read" in captured.err
    assert "Traceback" not in captured.err


def test_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = recipe("\ncalibrate {\n  samples $n\n}\n").replace("qspec 1\n", "qspec 1\n\nparam n = 4\n", 1)
    path = write(tmp_path / "p.qs", text)
    assert main(["check", path, "--set", "n=8"]) == 0
    assert main(["check", path, "--set", "n=0"]) == 1
    assert main(["check", path, "--set", "n"]) == 2
    assert "QS017" in capsys.readouterr().out


MISSPELT = recipe(apply="\napply rnt() on blocks[*].*\n").replace("int8 per channel", "int8 per chanel", 1)


def test_fix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Also what a first fix brings to light, with the file's own ends of lines; a second run has nothing to do."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.qs").write_bytes(MISSPELT.replace("\n", "\r\n").encode())
    assert main(["check", "--diff", "a.qs"]) == 1
    shown = capsys.readouterr().out
    assert "-apply rnt() on blocks[*].*\n+apply rtn() on blocks[*].*\n" in shown
    assert "--- a.qs\n+++ a.qs (fixed)\n" in shown
    assert (tmp_path / "a.qs").read_bytes() == MISSPELT.replace("\n", "\r\n").encode()
    assert main(["check", "--fix", "a.qs"]) == 0
    assert capsys.readouterr() == ("no errors in 1 recipe\n", "fixed 2 problems in a.qs\n")
    assert (tmp_path / "a.qs").read_bytes() == recipe().replace("\n", "\r\n").encode()
    assert main(["check", "--fix", "a.qs"]) == 0
    assert capsys.readouterr() == ("no errors in 1 recipe\n", "")
    assert main(["check", "--fix", "-"]) == 2


def test_only_named_files_are_fixed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base, child = tmp_path / "base.qs", tmp_path / "child.qs"
    base.write_text(MISSPELT)
    child.write_text('qspec 1\n\nextends "base.qs"\n\ncalibrate {\n  sample 4\n}\n')
    assert main(["check", "--fix", str(child)]) == 1
    assert base.read_text() == MISSPELT
    assert "samples 4" in child.read_text()
    assert "chanel" in capsys.readouterr().out
    assert main(["check", "--fix", str(child), str(base)]) == 0


def test_strict(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "w.qs", recipe("\ncalibrate {\n  mask none\n}\n"))
    assert main(["check", path]) == 0
    assert main(["check", "--strict", path]) == 1
    assert "warning[QS061]" in capsys.readouterr().out
    write(tmp_path / "w.qs", recipe("\ncalibrate {\n  mask none  # allow QS061: to compare\n}\n"))
    assert main(["check", "--strict", path]) == 0


def test_folders_and_patterns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A part of recipes, which is no recipe by itself, is checked in those; by itself where nothing extends it."""
    monkeypatch.chdir(tmp_path)
    part = recipe().replace('\nrecipe r {\n  family llada\n  model  "GSAI-ML/LLaDA-8B-Instruct"\n}\n', "", 1)
    for place, text in (
        ("sub/deep/part.qs", part),
        ("sub/a.qs", 'qspec 1\n\nextends "deep/part.qs"\n\nrecipe a {\n  family llada\n  model  "x/y"\n}\n'),
        ("sub/b_w4.qs", recipe()),
        (".hidden/bad.qs", "nonsense"),
        ("notes.txt", "nonsense"),
    ):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        write(tmp_path / place, text)
    assert main(["check", "."]) == 0
    assert main(["check", "sub", "sub/b_w4.qs"]) == 0
    assert main(["check", "**/*_w4.qs"]) == 0
    assert main(["fmt", "--check", "sub"]) == 0
    printed = capsys.readouterr()
    assert printed == ("no errors in 2 recipes\nno errors in 2 recipes\nno errors in 1 recipe\n", "")
    assert main(["check", "sub/deep"]) == 1
    assert "QS012" in capsys.readouterr().out
    (tmp_path / "empty").mkdir()
    for nothing in ("*.none", "empty", "", "x" * 5000, "x" * 5000 + "*"):
        assert main(["check", nothing]) == 3
        error = capsys.readouterr().err
        assert nothing[:50] in error
        assert "Traceback" not in error


def test_a_stale_lock_is_a_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "r.qs", recipe())
    lock = 'qspec_lock = 2\n\n[calibration]\nseed = 3\n\n[data.calibration]\nwikitext2 = { sha256 = "0" }\n'
    write(tmp_path / "r.lock", f'{lock}\n[model]\nid = "GSAI-ML/LLaDA-8B-Instruct"\n')
    assert main(["check", path]) == 0
    assert "warning[QS071]: `r.lock` is stale: calibration.seed is 0, locked 3\n" in capsys.readouterr().out


def python(code: str, **environment: str) -> str:
    """Runs the code in a fresh interpreter in the checkout."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, **environment},
        check=True,
    )
    return done.stdout


@pytest.mark.parametrize("command", [["check"], ["fmt", "--check"], ["show", "--resolved"], ["show", "--json"]])
def test_nothing_heavy_is_imported(command: list[str]) -> None:
    code = (
        f"import sys; from qspec.cli import main; assert main({[*command, str(MAIN_RECIPE)]!r}) == 0\n"
        f"print('heavy:', [m for m in {HEAVY!r} if m in sys.modules])"
    )
    assert python(code).endswith("heavy: []\n")


def test_a_lock_is_compared_without_anything_heavy(tmp_path: Path) -> None:
    path = write(tmp_path / "r.qs", recipe())
    write(tmp_path / "r.lock", "qspec_lock = 2\n\n[calibration]\nseed = 3\n")
    code = f"import sys; from qspec.cli import main; assert main(['check', '--strict', {path!r}]) == 1\n"
    assert python(f"{code}print('heavy:', [m for m in {HEAVY!r} if m in sys.modules])").endswith("heavy: []\n")


def cpu_seconds(command: list[str], bytecode: Path) -> float:
    """Of a process: other work on the machine does not count."""
    environment = {**os.environ, "PYTHONPYCACHEPREFIX": str(bytecode)}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # compiling modules anew is not what is measured
    before = os.times()
    subprocess.run([sys.executable, *command], env=environment, cwd=ROOT, check=True, capture_output=True)
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


@pytest.mark.parametrize(("recipes", "bar"), [(1, 0.5), (1000, 3.0)])
def test_how_long_check_takes_beyond_the_interpreter(recipes: int, bar: float, tmp_path: Path) -> None:
    text = MAIN_RECIPE.read_text(encoding="utf-8")
    assert "samples 128" in text
    for i in range(recipes):  # no two alike
        write(tmp_path / f"{i}.qs", text.replace("samples 128", f"samples {i + 1}"))
    within(bar, tmp_path, 40 if recipes == 1 else 8)


def within(bar: float, folder: Path, tries: int) -> None:
    """Checking the folder takes at most so many seconds of CPU beyond the interpreter."""
    check = ["-m", "qspec", "check", str(folder)]
    cpu_seconds(check, folder)  # writes bytecode
    floor, least = min(cpu_seconds(["-c", "pass"], folder) for _ in range(8)), math.inf
    for _ in range(tries):  # a busy machine only adds: the smallest is the command's own cost
        least = min(least, cpu_seconds(check, folder))
        if least - floor <= bar:
            break
    assert least - floor <= bar


def test_how_long_a_recipe_of_5000_rules_takes(tmp_path: Path) -> None:
    """With a warning for most of them, which later ones overrule."""
    parts = ("attention.q", "attention.k", "attention.v", "attention.o", "mlp.gate", "mlp.up", "mlp.down")
    rules = [f"layers blocks[{i % 32}].{parts[i // 32 % 7]} use {'w8a8' if i % 3 else 'w4a4'}" for i in range(5000)]
    text = MAIN_RECIPE.read_text(encoding="utf-8").replace("layers head", "\n".join([*rules, "layers head"]), 1)
    write(tmp_path / "many.qs", text)
    within(2.0, tmp_path, 8)
