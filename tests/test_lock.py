"""The lock: each fact is told by its name and nothing else is; branches merge; what is no lock is neither believed nor
replaced."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from qspec import cli, lock, resources
from qspec.compiler import find_lock, read_recipe
from qspec.data import DataPin
from qspec.errors import InputError
from qspec.lock import FORMAT, Lock, differences

RECIPE = """\
qspec 1

recipe small {
  family llada
  model  "MODEL"
}

calibrate {
  text    file("text.txt")
  samples 4
  length  32
  seed    0
}

scheme w8 {
  weights int8 per channel symmetric
}

scheme w4 {
  weights int4 per channel symmetric
}

layers blocks[*].*     use w8
layers head, embedding keep

apply rtn() on blocks[*].*

evaluate {
  nelbo on file("held.txt") samples 4
}
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """A recipe, its texts and its model: tiny-llada's files beside it."""
    shutil.copytree(resources.standin("llada"), tmp_path / "model", ignore=shutil.ignore_patterns("standin.json"))
    (tmp_path / "text.txt").write_text("one text\n")
    (tmp_path / "held.txt").write_text("another\n")
    path = tmp_path / "small.qs"
    path.write_text(RECIPE.replace("MODEL", str(tmp_path / "model")))
    return path


def locked(recipe: Path) -> Lock:
    return find_lock(read_recipe(recipe), None, "cpu", download=False)


def flipped(path: Path) -> None:
    """One bit of the byte in the middle."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def reworded(recipe: Path) -> None:
    recipe.write_text(recipe.read_text().replace("seed    0", "seed    7").replace("use w8", "use w4"))


CHANGES: dict[str, tuple[str, Callable[[Path], object]]] = {
    "a shard": (
        "model.files.model-00002-of-00002.safetensors",
        lambda path: flipped(path.parent / "model/model-00002-of-00002.safetensors"),
    ),
    "the config": ("model.files.config.json", lambda path: flipped(path.parent / "model/config.json")),
    "the tokenizer": ("tokenizer.tokenizer.json", lambda path: flipped(path.parent / "model/tokenizer.json")),
    "calibration data": ("data.calibration.text.txt.sha256", lambda path: flipped(path.parent / "text.txt")),
    "evaluation data": ("data.nelbo.held.txt.sha256", lambda path: flipped(path.parent / "held.txt")),
    "the seed": ("calibration.seed", reworded),  # and a rule: git has that
}


@pytest.mark.parametrize("change", CHANGES)
def test_one_change_is_told_by_name_and_nothing_else_is(recipe: Path, change: str) -> None:
    before = locked(recipe)
    assert before.stale(locked(recipe)) == []
    name, make = CHANGES[change]
    make(recipe)
    (told,) = before.stale(locked(recipe))
    assert told.startswith(f"{name} is ")


def test_another_version_of_a_package_is_told_by_name(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = locked(recipe)
    monkeypatch.setattr(lock, "version", lambda name: "9.9" if name == "triton" else before.content["packages"][name])
    assert before.stale(locked(recipe)) == [f"packages.triton is 9.9, locked {before.content['packages']['triton']}"]


def test_the_machine_is_told_and_enforced_only_if_strict(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two kinds that are alike up to their ends are both shown whole."""
    kinds = [f"cpu x86_64 {'with a name as long as this ' * 9}{end}" for end in "ab"]
    monkeypatch.setattr("qspec.machine.machine_kind", lambda _: kinds[0])
    before = locked(recipe)
    monkeypatch.setattr("qspec.machine.machine_kind", lambda _: kinds[1])
    monkeypatch.setattr(torch, "get_num_threads", lambda: 99)
    now = locked(recipe)
    assert before.stale(now) == []
    threads = before.content["machine"]["threads"]
    told = [f"machine.kind is {kinds[1]}, locked {kinds[0]}", f"machine.threads is 99, locked {threads}"]
    assert before.require(now, Path("x.lock")) == told
    with pytest.raises(InputError, match=r"the lock does not hold: machine.kind is .*; machine.threads is 99"):
        before.require(now, Path("x.lock"), strict=True)
    assert before.require(before, Path("x.lock"), strict=True) == []


def git(folder: Path, *arguments: str) -> str:
    who = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull, "HOME": str(folder)}
    who |= {f"GIT_{role}_{what}": "a@b.c" for role in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    done = subprocess.run(["git", *arguments], cwd=folder, env=os.environ | who, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_branches_that_change_different_things_merge_with_their_locks(
    recipe: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every fact is changed by one branch, and no two neighbours by the same; the merged lock is the merged inputs'."""
    folder = recipe.parent

    def lock_it(*arguments: str) -> None:
        assert cli.main(["lock", str(recipe), "--device", "cpu", *arguments]) == 0, capsys.readouterr().err

    versions = dict.fromkeys(lock.PACKAGES, "1")
    monkeypatch.setattr(lock, "version", lambda name: versions[name])
    lock_it()
    git(folder, "init", "--initial-branch", "main")
    git(folder, "add", ".")
    git(folder, "commit", "-m", "recipe and lock")

    git(folder, "switch", "-c", "calibration")
    recipe.write_text(recipe.read_text().replace("seed    0", "seed    5"))
    flipped(folder / "text.txt")
    flipped(folder / "model/model-00001-of-00002.safetensors")
    versions |= {"numpy": "2", "torch": "2"}
    lock_it()
    git(folder, "commit", "--all", "--message", "another seed, text and shard, newer numpy and torch")

    git(folder, "switch", "--create", "rules", "main")
    recipe.write_text(recipe.read_text().replace("use w8", "use w4"))
    flipped(folder / "held.txt")
    flipped(folder / "model/model-00002-of-00002.safetensors")
    flipped(folder / "model/tokenizer.json")
    versions |= {"numpy": "1", "torch": "1", "safetensors": "2", "triton": "2"}
    lock_it()
    git(folder, "commit", "--all", "--message", "other rules, held-out text, shard and tokenizer")

    git(folder, "merge", "--no-edit", "calibration")
    versions |= {"numpy": "2", "torch": "2"}
    capsys.readouterr()
    lock_it("--check")
    assert capsys.readouterr().out == f"{recipe.with_suffix('.lock')}: holds\n"
    merged = recipe.with_suffix(".lock").read_text()
    lock_it()
    assert recipe.with_suffix(".lock").read_text() == merged


def test_check_and_diff_write_nothing(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = recipe.with_suffix(".lock")
    assert cli.main(["lock", str(recipe), "--check"]) == 3
    assert "there is no lock file" in capsys.readouterr().err
    assert cli.main(["lock", str(recipe), "--diff", "--device", "cpu"]) == 0
    assert "+seed = 0\n" in capsys.readouterr().out
    assert not path.exists()
    assert cli.main(["lock", str(recipe), "--device", "cpu"]) == 0
    before = path.read_text()
    reworded(recipe)
    capsys.readouterr()
    assert cli.main(["lock", str(recipe), "--check", "--device", "cpu"]) == 1
    assert capsys.readouterr().out == f"{path}: stale: calibration.seed is 7, locked 0\n"
    assert cli.main(["lock", str(recipe), "--diff", "--device", "cpu"]) == 0
    changed = [
        line for line in capsys.readouterr().out.splitlines() if line[0] in "+-" and line[:3] not in ("+++", "---")
    ]
    assert changed == ["-seed = 0", "+seed = 7"]
    assert path.read_text() == before
    path.write_bytes(b"\xff")
    assert cli.main(["lock", str(recipe), "--diff", "--device", "cpu"]) == 3
    assert "not a lock file of qspec's" in capsys.readouterr().err


def test_another_number_of_threads_is_told_and_passes(
    recipe: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["lock", str(recipe), "--device", "cpu"]) == 0
    threads = torch.get_num_threads()
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads + 1)
    capsys.readouterr()
    assert cli.main(["lock", str(recipe), "--check", "--device", "cpu"]) == 0
    told, holds = capsys.readouterr().out.splitlines()
    assert told.endswith(f"machine.threads is {threads + 1}, locked {threads}")
    assert holds == f"{recipe.with_suffix('.lock')}: holds"


def test_without_the_model_the_recipe_and_the_packages_are_compared(
    recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["lock", str(recipe), "--device", "cpu"]) == 0
    shutil.rmtree(recipe.parent / "model")
    capsys.readouterr()
    assert cli.main(["lock", str(recipe), "--check", "--device", "cpu"]) == 0
    printed = capsys.readouterr()
    assert "recipe and packages alone were compared: " in printed.err
    recipe.write_text(recipe.read_text().replace('"held.txt"', '"other.txt"').replace("seed    0", "seed    7"))
    assert cli.main(["lock", str(recipe), "--check", "--device", "cpu"]) == 1
    assert capsys.readouterr().out.splitlines() == [
        f"{recipe.with_suffix('.lock')}: stale: {fact}"
        for fact in (
            "calibration.seed is 7, locked 0",
            "data.nelbo.held.txt is absent, locked named",
            "data.nelbo.other.txt is named, locked absent",
        )
    ]


def test_names_are_quoted_as_toml_wants_them(tmp_path: Path) -> None:
    """Names of files and data come from anywhere; one fact is one line."""
    name = 'a "b"\\\n\x7f\x01 = é [x]'
    shutil.copytree(resources.standin("llada"), tmp_path / "model")
    (tmp_path / "model" / f"{name}.json").write_text("{}")
    made = Lock.of(
        id=name,
        revision="main",
        folder=tmp_path / "model",
        seed=3,
        data=[DataPin("tasks", name, "abc", "0" * 64), DataPin("tasks", "b", "", "1" * 64)],
        machine={"kind": name},
    )
    assert tomllib.loads(made.text()) == made.content
    assert made.content["data"]["tasks"][name] == {"revision": "abc", "sha256": "0" * 64}
    assert all(line[0] in "#[" or " = " in line for line in made.text().splitlines() if line)
    made.write(tmp_path / "a.lock")
    assert Lock.read(tmp_path / "a.lock").content == made.content


@pytest.mark.parametrize("content", ["", "{}", "[]", "[" * 100_000, '[[package]]\nname = "torch"\n', b"\xff", None])
def test_what_is_no_lock_is_neither_read_nor_replaced(tmp_path: Path, content: str | bytes | None) -> None:
    path = tmp_path / "uv.lock"
    if content is None:
        path.mkdir()
    else:
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(InputError, match="not a lock file") as caught:
        Lock.read(path)
    assert caught.value.where == str(path)
    with pytest.raises(InputError, match="not a lock file"):
        Lock({"qspec_lock": FORMAT}).write(path)
    assert content is None or path.read_bytes() == (content.encode() if isinstance(content, str) else content)


@pytest.mark.parametrize(
    "content",
    [
        json.dumps({"machine": "cpu", "qspec_lock": 1, "recipe": "1"}, indent=2),
        "qspec_lock = 3\n",
        "qspec_lock = 2\nmodel = 1\n",
        "qspec_lock = 2\n[data]\nnelbo = 1\n",
        "qspec_lock = 2\n[data\n",
        "[other]\nqspec_lock = 2\n",
    ],
)
def test_a_lock_of_another_format_is_refused_and_made_again(tmp_path: Path, content: str) -> None:
    path = tmp_path / "r.lock"
    path.write_text(content)
    with pytest.raises(InputError, match=f"not a lock file of format {FORMAT}") as caught:
        Lock.read(path)
    assert caught.value.hint == "make it again: qspec lock r.qs"
    Lock({"qspec_lock": FORMAT, "model": {"id": "1"}}).write(path)
    assert Lock.read(path).content["model"] == {"id": "1"}


def test_a_lock_in_conflict_says_so(tmp_path: Path) -> None:
    path = tmp_path / "r.lock"
    path.write_text("qspec_lock = 2\n\n<<<<<<< HEAD\n[model]\n=======\n>>>>>>> other\n")
    with pytest.raises(InputError, match="the lock has merge conflicts") as caught:
        Lock.read(path)
    assert caught.value.where == f"{path}: line 3"


def test_differences_name_the_fact_and_show_both_values_whole() -> None:
    now = {"files": {"a": "1" * 64, "b": "2" * 64}, "new": {"x": 1}}
    before = {"files": {"a": "1" * 64, "c": "3" * 64}, "old": {"y": "z"}}
    assert differences(now, before, "locked") == [
        f"files.b is {'2' * 64}, locked absent",
        f"files.c is absent, locked {'3' * 64}",
        "new.x is 1, locked absent",
        "old.y is absent, locked z",
    ]
    assert differences(now, now, "locked") == []
