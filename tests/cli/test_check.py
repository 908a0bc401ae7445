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
    """Files in base/ are parts of recipes."""
    files = sorted(str(p) for p in (ROOT / "recipes").rglob("*.qs") if p.parent.name != "base")
    assert len(files) >= 22
    assert main(["check", *files]) == 0
    assert main(["fmt", "--check", *files]) == 0
    assert capsys.readouterr().out == f"no errors in {len(files)} recipes\n"


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
    check = ["-m", "qspec", "check", *map(str, sorted(tmp_path.glob("*.qs")))]
    cpu_seconds(check, tmp_path)  # writes bytecode
    floor, least = min(cpu_seconds(["-c", "pass"], tmp_path) for _ in range(8)), math.inf
    for _ in range(40 if recipes == 1 else 8):  # a busy machine only adds: the smallest is the command's own cost
        least = min(least, cpu_seconds(check, tmp_path))
        if least - floor <= bar:
            break
    assert least - floor <= bar
