"""Recipes in git: `git diff` after `git-setup`, hooks by the real pre-commit, the CI example, branches that merge."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from qspec.cli import main
from tests.difference.repository import Repository, repository
from tests.language.fakes import ROOT, recipe
from tests.models.layout import LLADA_8B

BASE = recipe().replace("GSAI-ML/LLaDA-8B-Instruct", "tiny-llada")
MEANING = "settings\n  calibrate samples  8 -> 9\n"


def samples(count: int, comment: str = "") -> str:
    return BASE.replace("\nscheme", f"\ncalibrate {{\n  samples {count}{comment}\n}}\n\nscheme")


@pytest.fixture
def scratch(tmp_path: Path) -> Repository:
    made = repository(tmp_path)
    made.write("recipes/r.qs", samples(8))
    made.commit("one")
    return made


# --- git diff ---


def test_git_diff_tells_the_meaning_and_is_still_a_patch(scratch: Repository) -> None:
    assert "added `*.qs diff=qspec` to .gitattributes\n" in scratch.run("qspec", "git-setup")
    scratch.write("recipes/r.qs", samples(9, "  # more"))
    scratch.write("recipes/new.qs", BASE)
    scratch.git("add", "-AN")
    shown = scratch.git("diff", "--", "recipes")
    assert shown.startswith("recipes/new.qs: new\ndiff --git a/recipes/new.qs b/recipes/new.qs\nnew file mode 100644\n")
    assert "a/recipes/r.qs -> b/recipes/r.qs, on tiny-llada\n\ntotals\n" in shown
    assert MEANING in shown
    assert "-  samples 8\n+  samples 9  # more\n" in shown
    assert "\x1b" not in shown
    assert "\x1b[32m+  samples 9  # more\x1b[m\n" in scratch.git(
        "-c", "color.diff=always", "diff", "--", "recipes/r.qs"
    )
    scratch.write("meaning.patch", shown)
    scratch.git("reset", "-q", "--hard")
    (scratch.folder / "recipes" / "new.qs").unlink(missing_ok=True)
    scratch.git("apply", "meaning.patch")
    assert (scratch.folder / "recipes" / "r.qs").read_text() == samples(9, "  # more")
    assert (scratch.folder / "recipes" / "new.qs").read_text() == BASE


@pytest.fixture
def here(scratch: Repository, monkeypatch: pytest.MonkeyPatch) -> Repository:
    """With this process in it, which saves the start of another."""
    monkeypatch.chdir(scratch.folder)
    for name, value in scratch.environment.items():
        monkeypatch.setenv(name, value)
    return scratch


def as_git(old: str, new: str, *moved: str, path: str = "recipes/r.qs") -> list[str]:
    """The arguments that git gives: of the recipe as it was, and as it is in the working tree."""
    sides = [word for file in (old, new) for word in (file, "0" * 40, "100644")]
    return ["git-diff", path, *sides, *moved]


def test_what_has_no_meaning_is_shown_as_text(here: Repository, capsys: pytest.CaptureFixture[str]) -> None:
    here.write("old.qs", samples(8))
    for data, expected in (
        (
            samples(8, "  # why").encode(),
            "no difference: both mean the same\ndiff --git a/recipes/r.qs b/recipes/r.qs\n--- a/",
        ),
        (b"\xff\x00", "b/recipes/r.qs:1: the file is not UTF-8 text (byte 0) (QS001): its text alone\ndiff --git "),
        (None, "recipes/r.qs: removed\ndiff --git a/recipes/r.qs b/recipes/r.qs\ndeleted file mode 100644\n--- a/"),
        (
            samples(8).replace("rtn", "rnt").encode(),
            "b/recipes/r.qs:19: there is no pass `rnt` (QS023): its text alone\n",
        ),
    ):
        (here.folder / "recipes" / "r.qs").write_bytes(data or b"")
        assert main(as_git("old.qs", "recipes/r.qs" if data else "/dev/null")) == 0
        shown = capsys.readouterr().out
        assert shown.startswith(expected)
        assert data != b"\xff\x00" or shown.endswith("Binary files a/recipes/r.qs and b/recipes/r.qs differ\n")
    assert main(["git-diff", "recipes/r.qs"]) == 0
    assert capsys.readouterr().out == "* Unmerged path recipes/r.qs\n"
    assert main(["git-diff", "recipes/r.qs", "old.qs"]) == 2


@pytest.mark.usefixtures("here")
def test_a_pager_that_ends_early_is_no_failure() -> None:
    command = [sys.executable, "-m", "qspec", *as_git("recipes/r.qs", "recipes/r.qs")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == 0


def test_bases_and_moved_recipes(here: Repository, capsys: pytest.CaptureFixture[str]) -> None:
    """Bases are those of the working tree."""
    here.write("old", 'qspec 1\n\nextends "r.qs"\n\nrecipe more {\n}\n')
    here.write("new", 'qspec 1\n\nextends "r.qs"\n\nrecipe most {\n}\n')
    assert main(as_git("old", "new", "recipes/most.qs", "similarity index 90%\n", path="recipes/more.qs")) == 0
    shown = capsys.readouterr().out
    head = "a/recipes/more.qs -> b/recipes/most.qs, on tiny-llada\n\nsettings\n  recipe name  more -> most\n"
    assert shown.startswith(head)
    assert (
        "rename from recipes/more.qs\nrename to recipes/most.qs\n--- a/recipes/more.qs\n+++ b/recipes/most.qs\n"
        in shown
    )


def test_setup_is_made_once_and_undone(here: Repository, capsys: pytest.CaptureFixture[str]) -> None:
    attributes = here.folder / ".gitattributes"
    attributes.write_bytes(b"*.png binary\r\n*.txt text")
    config = here.git("config", "--local", "--list")
    assert main(["git-setup"]) == 0
    assert "set diff.qspec.command in the repository's git config\n" in capsys.readouterr().out
    assert main(["git-setup"]) == 0
    assert capsys.readouterr().out == "it is set up\n"
    assert attributes.read_bytes() == b"*.png binary\r\n*.txt text\n*.qs diff=qspec\n"
    assert main(["git-setup", "--remove"]) == 0
    assert attributes.read_bytes() == b"*.png binary\r\n*.txt text\n"
    assert here.git("config", "--local", "--list") == config
    capsys.readouterr()
    assert main(["git-setup", "--remove"]) == 0
    assert capsys.readouterr().out == "there was nothing to remove\n"
    attributes.unlink()
    for command in (["git-setup"], ["git-setup", "--remove"]):
        assert main(command) == 0
    assert not attributes.exists()


def test_what_others_have_set_up_stays(here: Repository, capsys: pytest.CaptureFixture[str]) -> None:
    here.git("config", "diff.qspec.command", "mine")
    assert main(["git-setup"]) == 3
    assert "git has another command for the diff driver qspec: mine\n" in capsys.readouterr().err
    assert main(["git-setup", "--remove"]) == 0
    assert here.git("config", "diff.qspec.command") == "mine\n"
    here.git("config", "--unset", "diff.qspec.command")
    here.write(".gitattributes", "*.qs diff=other\n")
    assert main(["git-setup"]) == 3
    assert "git attributes give *.qs the diff driver 'other'\n" in capsys.readouterr().err
    assert (here.folder / ".gitattributes").read_text() == "*.qs diff=other\n"


def test_setup_outside_of_a_repository(
    here: Repository, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    outside = here.folder.parent
    here.git("init", "-q", "--bare", str(outside / "bare"))
    for folder in (outside, outside / "bare"):
        monkeypatch.chdir(folder)
        assert main(["git-setup"]) == 3
        assert "there is no git working tree here: " in capsys.readouterr().err


# --- pre-commit ---


def hooked(made: Repository, *hooks: str) -> None:
    """The hooks of this checkout, as a user has them of a release, installed for commits and pushes."""
    pytest.importorskip("pre_commit")
    source = repository(made.folder.parent / "hooks")
    shutil.copy(ROOT / ".pre-commit-hooks.yaml", source.folder)
    source.commit("hooks")
    revision = source.git("rev-parse", "HEAD").strip()
    config = {"repos": [{"repo": str(source.folder), "rev": revision, "hooks": [{"id": hook} for hook in hooks]}]}
    made.write(".pre-commit-config.yaml", yaml.safe_dump(config))
    made.commit("hooks")
    made.run("pre-commit", "install", "-t", "pre-commit", "-t", "pre-push")


@pytest.mark.slow
def test_hooks_format_and_block(scratch: Repository) -> None:
    hooked(scratch, "qspec-fmt", "qspec-check")
    scratch.write("recipes/r.qs", samples(9).replace("  samples", " samples   "))
    scratch.git("add", "-A")
    assert "formatted recipes/r.qs" in scratch.git("commit", "-m", "loose", code=1)
    assert (scratch.folder / "recipes" / "r.qs").read_text() == samples(9)
    scratch.commit("neat")
    scratch.write("recipes/r.qs", samples(9).replace("rtn", "rnt"))
    scratch.git("add", "-A")
    assert "error[QS023]: there is no pass `rnt`" in scratch.git("commit", "-m", "wrong", code=1)
    assert scratch.git("log", "-1", "--format=%s") == "neat\n"


# --- CI ---


def workflow() -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((ROOT / "examples" / "ci" / "recipes.yml").read_text())
    return content


def step(job: str, name: str) -> str:
    """What one step of the example runs."""
    (found,) = (step["run"] for step in workflow()["jobs"][job]["steps"] if step.get("name") == name)
    return str(found)


def test_the_ci_example_posts_the_meaning(scratch: Repository) -> None:
    """Of a recipe that changed, of one whose base changed, and of neither a new one nor one that is no recipe."""
    scratch.write("recipes/more.qs", 'qspec 1\n\nextends "r.qs"\n')
    scratch.write("recipes/same.qs", BASE)
    scratch.write("recipes/part.qs", "qspec 1\n")
    scratch.commit("two")
    scratch.write("recipes/r.qs", samples(9))
    scratch.write("recipes/same.qs", BASE + "# why\n")
    scratch.write("recipes/a b.qs", BASE)
    scratch.write("recipes/part.qs", "qspec 1\n\nlayers head keep\n")
    scratch.commit("three")
    revision = scratch.git("rev-parse", "HEAD~1").strip()
    scratch.environment.update(BASE=revision, GITHUB_STEP_SUMMARY=str(scratch.folder / "summary.md"))
    scratch.run("bash", "-euo", "pipefail", "-c", step("meaning", "What changed, by meaning"))
    summary = (scratch.folder / "summary.md").read_text()
    assert summary == (scratch.folder / "comment.md").read_text()
    assert re.findall(r"^(?:\*\*|`).*", summary, re.MULTILINE) == [
        "`recipes/a b.qs` is new.",
        f"**`{revision}:recipes/more.qs` → `recipes/more.qs`** on `tiny-llada`",
        "`recipes/part.qs` changed, and is no recipe by itself.",
        f"**`{revision}:recipes/r.qs` → `recipes/r.qs`** on `tiny-llada`",
    ]
    assert summary.count("- `calibrate samples  8 -> 9`\n") == 2


def test_the_ci_example_checks(scratch: Repository) -> None:
    """`fmt --check` goes before, and lets it pass."""
    check = step("meaning", "Check")
    scratch.replace("recipes/r.qs", "rtn", "rnt")
    assert "::error file=recipes/r.qs,line=19," in scratch.run("bash", "-euo", "pipefail", "-c", check, code=1)


# --- what the documents show ---


def test_transcripts(tmp_path: Path) -> None:
    """Of the first recipe, committed as recipe.qs on main, and changed in three lines."""
    made = repository(tmp_path)
    made.write("recipe.qs", (ROOT / "recipes" / "llada_w4a4.qs").read_text())
    made.run("qspec", "git-setup")
    made.commit("one")
    for old, new in (
        ("blocks[-3..-1]", "blocks[-6..-1]"),
        ("alpha = 0.6", "alpha = 0.5"),
        ("samples 128", "samples 256"),
    ):
        made.replace("recipe.qs", old, new)
    made.write("LLaDA-8B-Instruct/config.json", json.dumps(LLADA_8B))
    pages = {page: (ROOT / page).read_text() for page in ("README.md", "docs/git.md")}
    blocks = {
        page: re.findall(r"```console\n\$ ((?:qspec|git) diff.*)\n([^`]*)```", text) for page, text in pages.items()
    }
    printed = {command: made.run(*shlex.split(command)) for found in blocks.values() for command, _ in found}
    assert len(printed) == 2
    for page, text in pages.items():
        for command, shown in blocks[page]:
            text = text.replace(f"$ {command}\n{shown}```", f"$ {command}\n{printed[command]}```")
        if os.environ.get("QSPEC_UPDATE_GOLDENS") == "1":
            (ROOT / page).write_text(text)
        assert text == (ROOT / page).read_text()


# --- all of it ---


@pytest.mark.slow
def test_two_branches_merge_with_their_locks(tmp_path: Path) -> None:
    """Each changes a rule and a setting of the calibration; locks, hooks, `git diff` and `qspec diff` go along."""
    made = repository(tmp_path)
    text = samples(8).replace("samples 8", "samples 8\n  length  64\n  seed    0")
    text = text.replace("\nscheme", '\nevaluate {\n  nelbo on "wikitext2" samples 4\n}\n\nscheme', 1)
    text = text.replace(
        "use w8a8\n", "use w8a8\nlayers blocks[0].mlp.down use w8a8\n\n# the last ones\nlayers blocks[5].* use w8a8\n"
    )
    made.write("r.qs", text)
    made.run("qspec", "fmt", "r.qs")
    made.run("qspec", "lock", "r.qs")
    made.run("qspec", "git-setup")
    hooked(made, "qspec-fmt", "qspec-check", "qspec-lock")
    down, last, seed, nelbo = (
        "layers blocks[0].mlp.down {}",
        "layers blocks[5].* {}",
        "seed    {}",
        '"{}" samples 4',
    )
    one = ((down, "use w8a8", "keep"), (seed, "0", "7"))
    two = ((last, "use w8a8", "keep"), (nelbo, "wikitext2", "c4"))
    for branch, changes in (("one", one), ("two", two)):
        made.git("checkout", "-q", "-b", branch, "main")
        for line, old, new in changes:
            made.replace("r.qs", line.format(old), line.format(new))
        made.run("qspec", "fmt", "r.qs")
        made.run("qspec", "lock", "r.qs")
        made.commit(branch)
    made.git("merge", "-q", "--no-edit", "one")
    assert made.run("qspec", "lock", "--check", "r.qs") == "r.lock: holds\n"
    shown = made.run("qspec", "diff", "main:r.qs", "r.qs")
    assert "  blocks[0].mlp.down, blocks[5].*  8 modules  w8a8 -> keep\n" in shown
    assert "  calibrate seed  0 -> 7\n" in shown
    assert shown in made.git("diff", "main", "--", "r.qs").replace("a/r.qs -> b/r.qs", "main:r.qs -> r.qs")
    made.git("init", "-q", "--bare", str(tmp_path / "remote"))
    made.git("remote", "add", "origin", str(tmp_path / "remote"))
    made.git("push", "-q", "origin", "two")
    made.replace("r.qs", "seed    7", "seed    8")
    made.commit("a stale lock")
    assert "stale: " in made.git("push", "-q", "origin", "two", code=1)
