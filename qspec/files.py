"""Files that are either whole or not there: written beside their place, flushed to disk, renamed."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from qspec.errors import InputError, MachineError

_CHUNK = 1 << 20


def sha256(path: Path) -> str:
    """Hex digest of a file's content."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def write_whole(path: Path, content: bytes | str) -> str:
    """Writes a file so that no reader, and no crash, ever sees half of it. Returns its sha256."""
    data = content.encode() if isinstance(content, str) else content
    return write_whole_with(path, lambda temporary: _write_bytes(temporary, data))


def write_whole_with(path: Path, write: Callable[[Path], object]) -> str:
    """The same for a writer that takes a path."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with machine_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            write(temporary)
            with temporary.open("rb+") as stream:
                os.fsync(stream.fileno())
            digest = sha256(temporary)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        sync_folder(path.parent)
    return digest


def remove_unfinished(folder: Path) -> None:
    """Removes what killed writers left in a folder that nobody else is writing to."""
    for temporary in folder.rglob(".*.tmp"):
        temporary.unlink()


def sync_folder(folder: Path) -> None:
    """Makes renames in a folder survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def machine_errors(path: Path) -> Iterator[None]:
    """Turns what the file system refuses into one clear message: disk full, no permission, not a folder."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise MachineError(
                "the disk is full",
                where=str(path),
                hint="free space and run the same command again; finished blocks are kept",
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.EISDIR):
            raise InputError(
                f"cannot write here: {error.strerror}", where=str(path), hint="choose another --out folder"
            ) from error
        raise MachineError(f"writing failed: {error.strerror}", where=str(path)) from error


def _write_bytes(path: Path, data: bytes) -> None:
    path.write_bytes(data)
