"""main(): exit codes and messages; fmt, explain, show."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import qspec
from qspec import cli
from qspec.cli import COMMANDS, main
from qspec.errors import InputError
from tests.language.fakes import ROOT, load, recipe

LOOSE = recipe().replace("  family llada", "family    llada   # the family")
NEAT = recipe().replace("  family llada", "  family llada  # the family")


def test_version_help_and_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"qspec {qspec.__version__}\n"
    assert main(["--help"]) == 0
    assert main([]) == 2
    assert main(["chek"]) == 2
    assert "did you mean `qspec check`?" in capsys.readouterr().err
    assert main(["check"]) == 2
    assert main(["check", "--help"]) == 0
    assert main(["--verbose"]) == 2


def test_overview_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--help"])
    out = capsys.readouterr().out
    assert all(f"\n  {name} " in out for name in COMMANDS)


class _Stop:
    """A command that raises what it is given."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def add_arguments(self, parser: object) -> None:
        pass

    def run(self, _args: object) -> int:
        raise self.error


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (
            InputError("the file is gone", where="x", hint="look"),
            3,
            "qspec: the file is gone\n  where: x\n  next:  look\n",
        ),
        (KeyboardInterrupt(), 130, "qspec: interrupted\n"),
    ],
)
def test_errors_become_exit_codes(
    error: BaseException,
    code: int,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(cli, "import_module", lambda _name: _Stop(error))
    assert main(["check"]) == code
    assert capsys.readouterr().err == message


def test_a_closed_pipe_is_quiet() -> None:
    code = "import sys; from qspec.cli import main; sys.exit(main(['explain']))"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT)
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait() == 141


# --- fmt ---


def test_fmt_writes_and_keeps_the_mode(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "r.qs"
    path.write_text(LOOSE)
    path.chmod(0o640)
    link = tmp_path / "link.qs"
    link.symlink_to(path)
    assert main(["fmt", "--check", str(path)]) == 1
    assert path.read_text() == LOOSE
    assert main(["fmt", str(link)]) == 0
    assert path.read_text() == NEAT
    assert link.is_symlink()
    assert path.stat().st_mode & 0o777 == 0o640
    assert main(["fmt", "--check", str(path)]) == 0
    assert capsys.readouterr().out == f"would format {path}\nformatted {link}\n"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["link.qs", "r.qs"]


def test_fmt_diff(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "r.qs"
    path.write_text(LOOSE)
    assert main(["fmt", "--diff", str(path)]) == 0
    out = capsys.readouterr().out
    assert "-family    llada   # the family\n+  family llada  # the family\n" in out
    assert path.read_text() == LOOSE


def test_fmt_of_standard_input(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(LOOSE.replace("\n", "\r\n").encode())))
    assert main(["fmt", "-"]) == 0
    assert capsys.readouterr().out == NEAT


def test_fmt_leaves_a_broken_recipe_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "r.qs"
    path.write_text(recipe(rules="\nlayers blocks[*].* w8a8\n"))
    before = path.read_bytes()
    assert main(["fmt", str(path)]) == 1
    assert path.read_bytes() == before
    assert "error[QS005]" in capsys.readouterr().err


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_fmt_where_nothing_can_be_written(tmp_path: Path) -> None:
    path = tmp_path / "r.qs"
    path.write_text(LOOSE)
    tmp_path.chmod(0o500)
    try:
        assert main(["fmt", str(path)]) == 3
        assert path.read_text() == LOOSE
    finally:
        tmp_path.chmod(0o700)


# --- explain, show ---


def test_explain(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "qs023"]) == 0
    assert capsys.readouterr().out.startswith("QS023: Unknown pass\n")
    assert main(["explain"]) == 0
    assert "\nQS050  Passes out of order\n" in capsys.readouterr().out
    assert main(["explain", "QS999"]) == 2


def test_show(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "r.qs"
    path.write_text(LOOSE)
    assert main(["show", str(path)]) == 0
    assert capsys.readouterr().out == NEAT
    assert main(["show", "--resolved", str(path)]) == 0
    resolved = capsys.readouterr().out
    assert load(resolved).spec == load(NEAT).spec
    assert main(["show", "--json", str(path)]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["rules"][0]["selector"] == {"text": "blocks[*].*"}
    assert data["calibrate"]["samples"] == 128
    assert "span" not in json.dumps(data)
    assert main(["show"]) == 2


def test_schema(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "--schema"]) == 0
    schema = json.loads(capsys.readouterr().out)
    assert schema["recipe"]["$defs"]["Calibration"]["properties"]["samples"] == {
        "default": 128, "description": "windows of the text", "maximum": 65536, "minimum": 1, "title": "Samples",
        "type": "integer",
    }  # fmt: skip
    assert set(schema["passes"]) >= {"rtn", "smooth", "rotate_duquant", "gptq"}
    assert schema["passes"]["smooth"]["properties"]["alpha"]["anyOf"][0]["maximum"] == 1


@pytest.mark.parametrize("command", [["eval"], ["report"], ["generate", "--prompt", "x"]])
@pytest.mark.parametrize("name", ["r.qs", "qspec.json"])
def test_a_file_in_place_of_an_artifact(
    command: list[str], name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / name
    path.write_text(recipe())
    assert main([command[0], str(path), *command[1:]]) == 3
    hint = f"compile it first: qspec compile {path}" if name == "r.qs" else "give the folder that holds qspec.json"
    expected = f"qspec: this is a file; a compiled model is a folder\n  where: {path}\n  next:  {hint}\n"
    assert capsys.readouterr().err == expected
