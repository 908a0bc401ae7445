"""Which passes a recipe can name: our own, and those of installed packages."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.language.fakes import ROOT, recipe

OURS = ["awq", "clip", "gptaq", "gptq", "quarot", "rotate_duquant", "rtn", "smooth"]
PLUGIN = """
from __future__ import annotations
from dataclasses import dataclass
from qspec.language.spec import Fact, Pass

@dataclass(frozen=True)
class Nudge(Pass):
    by: float = 0.5
    requires = frozenset({Fact.FLOAT_WEIGHTS})

other = 3
"""


def run(code: str, *paths: Path) -> subprocess.CompletedProcess[str]:
    """The code in a fresh interpreter that finds packages under `paths` first."""
    start = f"import sys; sys.path[:0] = {[str(p) for p in paths]!r}\n"
    return subprocess.run([sys.executable, "-c", start + code], capture_output=True, text=True, cwd=ROOT, check=False)


def package(folder: Path, name: str, point: str) -> Path:
    """A package with one module and one entry point, as pip would leave it."""
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir(parents=True)
    (folder / f"{name}.py").write_text(PLUGIN)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[qspec.passes]\n{point}\n")
    return folder


def check(path: Path) -> str:
    return f"from qspec.cli import main; sys.exit(main(['check', {str(path)!r}]))"


def test_ours_are_the_files_that_rewrite() -> None:
    done = run("from qspec.passes import available; print(*available())")
    assert done.stdout.split() == OURS
    folder = ROOT / "qspec" / "passes"
    assert sorted(file.stem for file in folder.glob("*.py") if "\ndef rewrite(params" in file.read_text()) == OURS


def test_algorithms_are_imported_when_a_block_is_rewritten() -> None:
    code = "from qspec.passes import available; rtn = available()['rtn']()\n"
    show = "print([m for m in ('torch', 'qspec.passes.rtn', 'qspec.passes.gptq') if m in sys.modules])\n"
    done = run(code + show + "rtn.rewrite(None, ())\n" + show)
    assert done.stdout == "[]\n['torch', 'qspec.passes.rtn']\n", done.stderr


def test_a_recipe_can_name_the_pass_of_an_installed_package(tmp_path: Path) -> None:
    plugin = package(tmp_path / "site", "nudges", "nudge = nudges:Nudge")
    path = tmp_path / "n.qs"
    path.write_text(recipe(apply="\napply nudge(by = 0.25) on blocks[*].*\napply rtn() on blocks[*].*\n"))
    assert run(check(path), plugin).stdout == "no errors in 1 recipe\n"
    without = run(check(path))
    assert without.returncode == 1
    assert "there is no pass `nudge`" in without.stdout
    path.write_text(recipe(apply="\napply nugde() on blocks[*].*\n"))
    assert "did you mean `nudge`?" in run(check(path), plugin).stdout


def test_a_name_that_exists_already_and_what_is_no_pass_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "n.qs"
    path.write_text(recipe(apply="\napply nudge() on blocks[*].*\n"))
    taken = run(check(path), package(tmp_path / "a", "nudges", "rtn = nudges:Nudge"))
    assert taken.returncode == 3
    assert taken.stderr.startswith("qspec: two passes are named 'rtn'\n  where: nudges:Nudge\n")
    wrong = run(check(path), package(tmp_path / "b", "nudges", "nudge = nudges:other"))
    assert wrong.returncode == 3
    assert wrong.stderr.startswith("qspec: nudges:other is not a qspec Pass\n  where: entry point nudge\n")
