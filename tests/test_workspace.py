"""The folder that an artifact grows in, and its place: what is taken over, what is refused, what a kill leaves."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from qspec import artifact, files, workspace
from qspec.artifact import verify
from qspec.errors import InputError, MachineError
from qspec.workspace import Workspace, require_place
from tests.test_artifact import KEY, manifest, publish


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_an_interrupted_run_goes_on(tmp_path: Path) -> None:
    first = Workspace(tmp_path / "out", KEY)
    first.write_shard("s1", {"a": torch.ones(2)})
    first.close()
    again = Workspace(tmp_path / "out", KEY)
    record = again.finished("s1")
    assert record is not None
    assert record.tensors == {"a": 8}
    assert again.finished("s2") is None
    assert again.thrown_away is None
    again.close()


def test_what_is_not_taken_over_goes_away(tmp_path: Path) -> None:
    """All but the shards is written anew: kernels of another version, halves of files, folders of killed writers."""
    first = Workspace(tmp_path / "out", KEY)
    first.write_shard("s1", {"a": torch.ones(2)})
    first.write("kernels/one.py", "1")
    first.close()
    for left in (".17.4.qspec.tmp/x", "kernels/.17.4.qspec.tmp/one.py", "report/report.json", ".report.partial/x"):
        (first.folder / left).parent.mkdir(parents=True, exist_ok=True)
        (first.folder / left).write_text("half")
    again = Workspace(tmp_path / "out", KEY)
    assert sorted(tree(again.folder)) == [".lock", ".names", ".progress.json", "s1"]
    again.close()


@pytest.mark.parametrize(
    "stray", ["notes.txt", "model-00009-of-00009.safetensors", "kernels/old.py", "sub/a", ".x.tmp"]
)
def test_a_stray_in_the_work_folder_is_named_and_stays(tmp_path: Path, stray: str) -> None:
    first = Workspace(tmp_path / "out", KEY)
    first.write_shard("s1", {"a": torch.ones(2)})
    first.close()
    (first.folder / stray).parent.mkdir(exist_ok=True)
    (first.folder / stray).write_text("precious")
    with pytest.raises(InputError, match="something that qspec did not write") as caught:
        Workspace(tmp_path / "out", KEY)
    assert caught.value.where == str(first.folder / stray)
    assert (first.folder / stray).read_text() == "precious"
    (first.folder / stray).unlink()
    again = Workspace(tmp_path / "out", KEY)
    assert again.finished("s1") is not None
    again.close()


def test_the_manifest_lists_what_this_run_wrote(tmp_path: Path) -> None:
    first = Workspace(tmp_path / "out", KEY)
    first.write("old.json", "{}")
    first.write_shard("s1", {"a": torch.ones(2)})
    first.close()
    again = Workspace(tmp_path / "out", KEY)
    assert again.finished("s1") is not None
    again.write("new.json", "{}")
    assert list(again.hashes()) == ["new.json", "s1"]
    (again.folder / "late.txt").write_text("precious")
    with pytest.raises(InputError, match=r"did not write[\s\S]*late\.txt[\s\S]*what was compiled is kept in"):
        again.publish()
    assert (again.folder / "late.txt").read_text() == "precious"
    assert not (tmp_path / "out").exists()
    again.close()


def test_a_torn_shard_is_made_again(tmp_path: Path) -> None:
    first = Workspace(tmp_path / "out", KEY)
    first.write_shard("s1", {"a": torch.ones(2)})
    first.close()
    shard = tmp_path / "out.partial" / "s1"
    shard.write_bytes(shard.read_bytes()[:-1])
    again = Workspace(tmp_path / "out", KEY)
    assert again.finished("s1") is None
    again.close()


def edited(change: Callable[[dict[str, Any]], object]) -> Callable[[str], str]:
    def edit(text: str) -> str:
        content = json.loads(text)
        change(content)
        return json.dumps(content)

    return edit


@pytest.mark.parametrize(
    "damage",
    [
        lambda _: "{",
        lambda _: "[]",
        lambda _: "",
        lambda _: "\x00",
        lambda _: "[" * 100_000,
        lambda _: '{"inputs": ' + '{"a":' * 5000 + "1" + "}" * 5001,
        edited(lambda c: c["shards"].update(s1=[])),
        edited(lambda c: c["shards"]["s1"].pop("tensors")),
        edited(lambda c: c.update(shards=[])),
        edited(lambda c: c["shards"]["s1"]["tensors"].update(a=9)),  # believed, it would end in the index
        edited(lambda c: c["inputs"].update(recipe="2")),
        edited(lambda c: c.pop("digest")),
    ],
)
def test_a_damaged_record_of_progress_is_not_believed(tmp_path: Path, damage: Callable[[str], str]) -> None:
    first = Workspace(tmp_path / "out", KEY)
    first.write_shard("s1", {"a": torch.ones(2)})
    first.close()
    record = first.folder / ".progress.json"
    record.write_text(damage(record.read_text()))
    again = Workspace(tmp_path / "out", KEY)
    assert again.thrown_away == {}
    assert again.finished("s1") is None
    assert sorted(tree(again.folder)) == [".lock", ".names"]
    again.close()


def test_other_inputs_start_over_and_are_told(tmp_path: Path) -> None:
    first = Workspace(tmp_path / "out", KEY)
    first.write_shard("s1", {"a": torch.ones(2)})
    first.close()
    again = Workspace(tmp_path / "out", {"recipe": "2"})
    assert again.thrown_away == KEY
    assert not (again.folder / "s1").exists()
    again.close()


# --- places ---


def test_publishing_replaces_an_older_artifact(tmp_path: Path) -> None:
    publish(tmp_path / "out")
    publish(tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out"]
    assert not [p for p in (tmp_path / "out").iterdir() if p.name.startswith(".")]
    verify(tmp_path / "out")


def test_an_artifact_of_an_older_version_is_replaced(tmp_path: Path) -> None:
    out = publish(tmp_path / "out")
    older = json.loads((out / "qspec.json").read_text()) | {"format": 1, "gone": [0.1, "ü"]}
    del older["digest"]
    older["digest"] = artifact.content_digest(older)
    (out / "qspec.json").write_text(json.dumps(older, indent=1))
    publish(out)
    verify(out)


def user_file(out: Path) -> None:
    (out / "thesis.tex").write_text("precious")


def user_folder(out: Path) -> None:
    (out / ".git").mkdir()
    (out / ".git/config").write_text("precious")


def in_report(out: Path) -> None:
    (out / "report/thesis.tex").write_text("precious")


def user_link(out: Path) -> None:
    (out.parent / "work").mkdir()
    (out / "sub").symlink_to(out.parent / "work")


def edit(out: Path) -> None:
    (out / "config.json").write_text('{"precious": 1}')


def any_manifest(out: Path) -> None:
    (out / "qspec.json").write_text("{}")


def nested_manifest(out: Path) -> None:
    (out / "qspec.json").write_text("[" * 100_000)


@pytest.mark.parametrize(
    "change",
    [user_file, user_folder, in_report, user_link, edit, any_manifest, nested_manifest],
    ids=lambda c: c.__name__,
)
def test_a_folder_with_anything_of_a_users_is_refused_before_and_after_the_work(
    tmp_path: Path, change: Callable[[Path], None]
) -> None:
    out = publish(tmp_path / "out")
    late = Workspace(out, KEY)
    late.write("config.json", "{}")
    change(out)
    before = tree(tmp_path / "out")
    with pytest.raises(InputError, match="the output folder holds"):
        require_place(out)
    with pytest.raises(InputError, match=rf"the output folder holds[\s\S]*kept in {late.folder}"):
        late.publish()
    late.close()
    assert tree(out) == before
    assert (late.folder / "config.json").exists()


def test_backups_and_folders_beside_the_artifact_are_left_alone(tmp_path: Path) -> None:
    publish(tmp_path / "m")
    for name in ("m.old", "m.report.partial"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "thesis.tex").write_text("precious")
    publish(tmp_path / "m")
    (tmp_path / "m.partial").mkdir()
    (tmp_path / "m.partial" / "thesis.tex").write_text("precious")
    with pytest.raises(InputError, match="is to grow in holds something that qspec did not write"):
        require_place(tmp_path / "m")
    for name in ("m.old", "m.report.partial", "m.partial"):
        assert tree(tmp_path / name) == {"thesis.tex": b"precious"}
    verify(tmp_path / "m")


def test_a_folder_made_during_the_work_is_left_alone(tmp_path: Path) -> None:
    space = Workspace(tmp_path / "out", KEY)
    space.write("config.json", "{}")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/thesis.tex").write_text("precious")
    with pytest.raises(InputError, match="not a qspec artifact"):
        space.publish()
    space.close()
    assert tree(tmp_path / "out") == {"thesis.tex": b"precious"}
    shutil.rmtree(tmp_path / "out")
    (tmp_path / "out").mkdir()
    publish(tmp_path / "out")  # an empty one is nobody's
    verify(tmp_path / "out")


def test_a_file_that_comes_at_the_last_moment_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the look and the move: the older artifact goes back to its place."""
    out = publish(tmp_path / "out")
    looked = workspace.own_files

    def look_and_write(folder: Path) -> None:
        looked(folder)
        (folder / "thesis.tex").write_text("precious")

    space = Workspace(out, KEY)
    space.write("config.json", "{}")
    monkeypatch.setattr(workspace, "own_files", look_and_write)
    with pytest.raises(InputError, match="written to while it was being replaced"):
        space.publish()
    space.close()
    assert (out / "thesis.tex").read_text() == "precious"
    (out / "thesis.tex").unlink()
    verify(out)


def test_a_link_is_worked_behind(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "ln").symlink_to("disk")
    for _ in range(2):
        publish(tmp_path / "ln")
        assert (tmp_path / "ln").is_symlink()
        assert sorted(p.name for p in tmp_path.iterdir()) == ["disk", "ln"]
        verify(tmp_path / "disk")
    (tmp_path / "to").symlink_to("nowhere")
    publish(tmp_path / "to")
    verify(tmp_path / "nowhere")


def test_places_that_cannot_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    (tmp_path / "file").write_text("precious")
    (tmp_path / "loop").symlink_to("loop")
    found = publish(tmp_path / "m")
    for out, message in {
        ".": "this command runs in",
        "..": "this command runs in",
        "../here/": "this command runs in",
        "/": "root of a file system",
        "/proc": "root of a file system",
        "../file": "the output folder is a file",
        "../file/sub": "cannot write here: Not a directory",
        "../loop": "cannot write here|the output folder is a file",
        f"{found}/sub": "inside an artifact",
        "/proc/self/here": "cannot write here|writing failed",
    }.items():
        with pytest.raises(InputError, match=message):
            require_place(Path(out))
    assert require_place(Path("new/deep/")) == here / "new/deep"
    assert not list(here.iterdir())


def test_a_place_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: object, _: int) -> bool:  # root may write anywhere
        return Path(str(path)) != tmp_path

    monkeypatch.setattr(os, "access", refuse)
    with pytest.raises(InputError, match=f"cannot write here: Permission denied[\\s\\S]*where: {tmp_path}"):
        require_place(tmp_path / "a/b")


def test_two_compiles_do_not_share_a_workspace(tmp_path: Path) -> None:
    first = Workspace(tmp_path / "out", KEY)
    with pytest.raises(InputError, match="another compile is writing here"):
        Workspace(tmp_path / "out", KEY)
    first.close()


# --- kills ---

STEPS = ("mkdir", "rename", "replace", "unlink", "rmdir", "chmod")


class Killed(BaseException):
    """Nothing that catches errors catches this."""


class Killer:
    """Lets the first `moment` calls to the file system pass; then the process is dead: none has an effect any more."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.left: int | None = None
        monkeypatch.setattr(os, "fsync", lambda _: None)  # slow, and no power is cut here
        for name in STEPS:
            monkeypatch.setattr(os, name, self.around(getattr(os, name)))

    def around(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def passes(*arguments: Any, **more: Any) -> Any:
            if self.left is not None:
                if self.left == 0:
                    raise Killed
                self.left -= 1
            return call(*arguments, **more)

        return passes


def build(out: Path) -> None:
    """What a compile does with a workspace, on one page."""
    space = Workspace(out, KEY)
    try:
        if space.finished("s1") is None:
            space.write_shard("s1", {"a": torch.ones(4)})
        space.write_index(["s1"])
        space.write("kernels/one.py", "1")
        space.write("qspec.json", manifest(space.hashes()).text())
        space.publish()
    finally:
        space.close()


@pytest.mark.parametrize("older", [False, True], ids=["new", "over an older artifact"])
def test_killed_at_any_step_the_next_run_ends_in_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, older: bool
) -> None:
    """At every call that changes the file system; and a loadable artifact is there whenever there was one before."""
    build(tmp_path / "undisturbed")
    wanted = tree(tmp_path / "undisturbed")
    killer = Killer(monkeypatch)
    moment = 0
    while True:
        out = tmp_path / str(moment)
        if older:
            publish(out)
        killer.left = moment
        try:
            build(out)
        except Killed:
            pass
        else:
            break
        finally:
            killer.left = None
        build(out)
        assert tree(out) == wanted, moment
        assert not out.with_name(f"{moment}.partial").exists()
        moment += 1
    assert moment > 30
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([*(str(i) for i in range(moment + 1)), "undisturbed"])


# --- errors of the machine ---


def test_a_limit_on_file_sizes_is_one_message_and_the_run_goes_on(tmp_path: Path) -> None:
    """In a process of its own, with what the system really does: safetensors reports it by an error of its own."""
    code = f"""
import resource, torch
from pathlib import Path
from qspec.errors import MachineError
from qspec.workspace import Workspace
space = Workspace(Path({str(tmp_path / "out")!r}), {KEY!r})
space.write_shard("s1", {{"a": torch.ones(8)}})
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
try:
    space.write_shard("s2", {{"a": torch.ones(4096)}})
except MachineError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("the disk is full for a file of this size")
    assert f"where: {tmp_path / 'out.partial' / 's2'}" in done.stdout
    again = Workspace(tmp_path / "out", KEY)
    assert again.finished("s1") is not None
    assert sorted(tree(again.folder)) == [".lock", ".names", ".progress.json", "s1"]
    again.close()


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Makes safetensors fail as it does when the system does."""
    from safetensors import SafetensorError

    def arm(number: int) -> None:
        def fail(_: object, path: Path, **__: object) -> None:
            (path.parent / ".tmpAbCdEf").write_text("half")  # its own temporary file
            raise SafetensorError(f"Error while serializing: I/O error: x (os error {number})")

        monkeypatch.setattr(workspace, "save_file", fail)

    return arm


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (errno.ENOSPC, "the disk is full\n"),
        (errno.EDQUOT, "the disk quota is used up\n"),
        (errno.EFBIG, "the disk is full for a file of this size"),
        (errno.EIO, "writing failed: Input/output error"),
    ],
)
def test_a_library_that_fails_for_the_machine(
    tmp_path: Path, broken: Callable[[int], None], number: int, message: str
) -> None:
    space = Workspace(tmp_path / "out", KEY)
    broken(number)
    with pytest.raises(MachineError) as caught:
        space.write_shard("s1", {"a": torch.ones(2)})
    space.close()
    assert str(caught.value).startswith(message)
    assert sorted(tree(space.folder)) == [".lock", ".names"]


def test_a_library_that_fails_for_another_reason_is_not_hidden(tmp_path: Path) -> None:
    def fail(_: Path) -> None:
        raise ValueError("a fault of ours")

    with pytest.raises(ValueError, match="a fault of ours"):
        files.write_whole_with(tmp_path / "a", fail)


def test_every_file_has_the_mode_of_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        out = publish(tmp_path / "out")
    finally:
        os.umask(before)
    assert {p.stat().st_mode & 0o777 for p in out.rglob("*") if p.is_file() and "report.md" not in p.name} == {0o640}
