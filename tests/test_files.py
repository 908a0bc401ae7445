"""Files are whole or absent; what the file system refuses becomes one clear message."""

from __future__ import annotations

import errno
import hashlib
from pathlib import Path

import pytest

from qspec import files
from qspec.errors import InputError, MachineError


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
