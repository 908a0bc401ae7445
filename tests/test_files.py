"""Files are whole or absent; what the file system refuses becomes one clear message."""

from __future__ import annotations

import errno
import hashlib
import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from qspec import cli, files
from qspec.artifact import verify
from qspec.errors import InputError, MachineError
from tests.test_artifact import publish


def test_writes_and_hashes(tmp_path: Path) -> None:
    target = tmp_path / "a" / "b.txt"
    assert files.write_whole(target, "text") == hashlib.sha256(b"text").hexdigest()
    assert target.read_text() == "text"
    assert [p.name for p in target.parent.iterdir()] == ["b.txt"]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "b.txt"
    files.write_whole(target, "old")

    def fail(path: Path) -> None:
        path.write_text("ne")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(MachineError, match="the disk is full") as caught:
        files.write_whole_with(target, fail)
    assert "run the same command again" in str(caught.value)
    assert target.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["b.txt"]


@pytest.mark.parametrize(
    ("code", "kind"), [(errno.EACCES, InputError), (errno.EROFS, InputError), (errno.EIO, MachineError)]
)
def test_refusals_name_the_path(tmp_path: Path, code: int, kind: type[Exception]) -> None:
    def fail(_: Path) -> None:
        raise OSError(code, "refused")

    with pytest.raises(kind, match=r"b\.txt"):
        files.write_whole_with(tmp_path / "b.txt", fail)


def test_a_file_in_the_place_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("not a folder")
    with pytest.raises(InputError, match="cannot write here"):
        files.write_whole(tmp_path / "a" / "b.txt", "text")


def test_a_link_stays_and_its_target_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "target").write_text("old")
    (tmp_path / "link").symlink_to("target")
    files.write_whole(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "target").read_text() == "new"


def test_what_is_no_file_is_not_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, Path("/dev/null")):
        with pytest.raises(InputError, match="cannot write here"):
            files.write_whole(path, "text")
        with pytest.raises(InputError, match="cannot write here"):
            files.require_file(path)


def test_only_what_dead_writers_left_is_removed(tmp_path: Path) -> None:
    dead = subprocess.Popen(["true"])
    dead.wait()
    mine = [".x.tmp", f".{os.getppid()}.1.qspec.tmp", ".a.1.qspec.tmp"]  # a user's, a living process's, a user's
    for name in (*mine, f".{dead.pid}.1.qspec.tmp", f"sub/.{dead.pid}.1.qspec.tmp", f".{os.getpid()}.9.qspec.tmp"):
        (tmp_path / name).mkdir(parents=True)
    files.remove_unfinished(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([*mine, "sub"])
    assert not list((tmp_path / "sub").iterdir())


def test_a_lock_is_taken_again_where_its_holder_removed_it(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    held = files.take_lock(path, wait=False)
    assert held is not None
    assert files.take_lock(path, wait=False) is None
    with ThreadPoolExecutor(1) as thread:
        waiting = thread.submit(files.take_lock, path, wait=True)
        path.unlink()
        held.close()
        found = waiting.result(timeout=20)
    assert found is not None
    assert os.path.samestat(os.fstat(found.fileno()), path.stat())
    found.close()


def test_errors_of_the_system_anywhere_are_one_message(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "/cache/x")

    monkeypatch.setattr(cli, "_dispatch", fail)
    assert cli.main(["check", "x.qs"]) == 3
    assert capsys.readouterr().err.startswith("qspec: the disk is full\n  where: /cache/x\n  next:  free space")


def test_a_file_that_may_not_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As another user meets an artifact whose shards only their owner may read."""
    out = publish(tmp_path / "m")
    opened = os.open

    def refuse(path: Any, *more: Any, **options: Any) -> int:
        if str(path).endswith(".safetensors"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return opened(path, *more, **options)

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(InputError, match=r"a file cannot be read: Permission denied\n  where: .*00001\.safetensors"):
        verify(out)
