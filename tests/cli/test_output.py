"""What commands show: nothing from a file commands the terminal; a closed or full stream is one clear message."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from qspec.cli import main
from qspec.cli.output import near
from qspec.diagnostics import Diagnostic, Note, RecipeError, Source, Span, render_text, to_github, to_json
from qspec.errors import InputError, visible
from qspec.language.parser import decode
from tests.language.fakes import ROOT, recipe

ESC, BEL, C1, RTL, HIDDEN, HALF = "\x1b[31m", "\x07", "\x9b31m", "\u202e", "\u200b", "\udcff"
HOSTILE = f"a{ESC}b{BEL}c{C1}d{RTL}e{HIDDEN}f{HALF}g"
SHOWN = r"a\x1b[31mb\x07c\x9b31md\u202ee\u200bf\udcffg"


def test_what_is_not_ours_is_escaped_and_everything_else_stays() -> None:
    assert visible(HOSTILE) == SHOWN
    kept = "two\nlines\tand a tab, 漢字\u3000é ünï 🙂 a\u00a0b – §"
    assert visible(kept) == kept


def test_errors_are_escaped() -> None:
    text = str(InputError(HOSTILE, where=HOSTILE, hint=HOSTILE))
    assert text == f"{SHOWN}\n  where: {SHOWN}\n  next:  {SHOWN}"


def test_diagnostics_are_escaped_in_every_form() -> None:
    span = Span(0, 1, HOSTILE)
    source = {HOSTILE: Source(HOSTILE, f"x{ESC}")}
    found = [Diagnostic("QS001", HOSTILE, span, HOSTILE, notes=(Note(span, HOSTILE),))]
    for text in (render_text(found, source), to_json(found, source), to_github(found, source)):
        assert text == visible(text)
        assert "31m" in text
    assert str(RecipeError(found, source)) == visible(str(RecipeError(found, source)))


@pytest.mark.parametrize(
    "arguments", [["check", f"{ESC}.qs"], ["check", "x.qs", f"--{ESC}"], [f"{ESC}{RTL}"], ["explain", ESC]]
)
def test_arguments_are_escaped(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) in (2, 3)
    said = capsys.readouterr()
    assert said.err == visible(said.err)
    assert "31m" in said.err


@pytest.mark.parametrize(
    "char", ["\x1b", "\x7f", "\x85", "\x9b", "\u061c", "\u200b", "\u200f", "\u2028", "\u2066", "\ufeff"]
)
def test_a_recipe_holds_no_control_character(char: str) -> None:
    text = recipe().replace("LLaDA-8B", f"LLaDA-{char}8B")
    _, (problem,) = decode(text.encode(), "r.qs")
    assert (problem.code, problem.message) == ("QS001", f"the file holds the control character U+{ord(char):04X}")


def test_commands_show_only_what_passes_the_one_place() -> None:
    for path in (ROOT / "qspec" / "cli").glob("*.py"):
        direct = re.findall(r"(?<![\w.])print\(|std(?:out|err)\.write\(", path.read_text())
        assert not direct or path.name == "output.py", path


def shell(command: str, folder: Path) -> tuple[int, str]:
    """Exit code of `qspec COMMAND` in a shell, and its standard error."""
    (folder / "r.qs").write_text(recipe())
    line = f"exec {sys.executable} -m qspec {command}"
    done = subprocess.run(
        ["sh", "-c", line], cwd=folder, env={"PYTHONPATH": str(ROOT)}, capture_output=True, check=False
    )
    return done.returncode, done.stderr.decode()


def test_standard_output_is_closed(tmp_path: Path) -> None:
    code, errors = shell("check r.qs >&-", tmp_path)
    assert (code, errors.splitlines()[0]) == (3, "qspec: standard output is closed")
    assert "Traceback" not in errors


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
@pytest.mark.parametrize("command", ["check r.qs", "--help", "check --help", "show r.qs"])
def test_standard_output_is_full(tmp_path: Path, command: str) -> None:
    code, errors = shell(f"{command} > /dev/full", tmp_path)
    assert code == 3
    assert errors.startswith("qspec: standard output cannot be written: No space left on device\n  next:")
    assert "Traceback" not in errors
    assert "Exception" not in errors


@pytest.mark.parametrize("away", ["2>&-", "2> /dev/full", "<&-"])
def test_other_streams_may_be_closed_or_full(tmp_path: Path, away: str) -> None:
    assert shell(f"check nothing.qs {away}", tmp_path)[0] == 3
    assert shell(f"check r.qs {away}", tmp_path)[0] == 0


def test_standard_input_is_closed(tmp_path: Path) -> None:
    code, errors = shell("check - <&-", tmp_path)
    assert (code, "Traceback" in errors) == (3, False)


def test_a_terminal_that_knows_ascii_only_gets_all_of_it(tmp_path: Path) -> None:
    (tmp_path / "é.qs").write_text(recipe())
    line = [sys.executable, "-m", "qspec", "fmt", "--check", "é.qs"]
    environment = {"PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "1"}
    (tmp_path / "é.qs").write_text(recipe().replace("family llada", "family    llada"))
    done = subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (1, b"would format \\xe9.qs\n")


INTERRUPT = """
import os, runpy, signal, sys

signal.signal(signal.SIGINT, signal.default_int_handler)  # a suite in a shell's background has it ignored

class Interrupting:
    def find_spec(self, name, path=None, target=None):
        if name == {name!r}:
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Interrupting())
sys.argv = ["qspec", "check", "r.qs"]
runpy.run_module("qspec", run_name="__main__")
"""


@pytest.mark.parametrize("name", ["qspec.cli", "qspec.diagnostics", "qspec.cli.check", "qspec.language"])
def test_an_interrupt_while_modules_are_loaded(tmp_path: Path, name: str) -> None:
    line = [sys.executable, "-c", INTERRUPT.format(name=name)]
    done = subprocess.run(line, cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}, capture_output=True, check=False)
    assert (done.returncode, done.stderr.decode()) == (130, "qspec: interrupted\n")


def test_paths_below_the_working_folder_are_named_from_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert near(tmp_path / "build" / "a") == Path("build/a")
    assert near(tmp_path.parent / "b") == tmp_path.parent / "b"
