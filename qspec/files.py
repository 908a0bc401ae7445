"""Files that are either whole or not there: written beside their place, flushed to disk, renamed."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import re
import shutil
import stat
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import IO, BinaryIO

from qspec.errors import InputError, MachineError, QspecError

MAX_BYTES = 256 << 20  # of a file that is read whole, where nothing else is said
_CHUNK = 1 << 20
_UNFINISHED = re.compile(r"\.(\d+)\.\d+\.qspec\.tmp")  # what a writer of this process id has begun
_NUMBER = re.compile(r"\(os error (\d+)\)")  # how libraries written in Rust say which error the system gave them
_FULL = {
    errno.ENOSPC: ("the disk is full", "free space, or inodes if `df -i` shows none, and run the same command again"),
    errno.EDQUOT: ("the disk quota is used up", "free space and run the same command again"),
    errno.EFBIG: (
        "the disk is full for a file of this size: the limit on a file's size is reached",
        "raise the limit (`ulimit -f`), or write to another file system, and run the same command again",
    ),
}
_REFUSED = (
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ENOTEMPTY, errno.EBUSY,
    errno.ENAMETOOLONG, errno.ELOOP,
)  # fmt: skip


def open_input(path: Path) -> BinaryIO:
    """A file that may be anybody's, to be read. Raises OSError where it cannot be, or is no regular file.

    A pipe would wait for a writer and a device never end: neither is read.
    """
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    mode = os.fstat(handle).st_mode
    if stat.S_ISREG(mode):
        return os.fdopen(handle, "rb")
    os.close(handle)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, "it is a folder", str(path))
    raise OSError(errno.EINVAL, "it is not a regular file", str(path))


def read_input(path: Path, limit: int = MAX_BYTES) -> bytes:
    """The content of a file of at most `limit` bytes. Raises OSError as `open_input`, and where it has more."""
    with open_input(path) as stream:
        content = stream.read(limit + 1)
    if len(content) > limit:
        raise OSError(errno.EOVERFLOW, f"it has more than {limit} bytes", str(path))
    return content


def sha256(path: Path) -> str:
    """Hex digest of a file's content."""
    digest = hashlib.sha256()
    with open_input(path) as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def sha256_each(paths: Sequence[Path]) -> Iterator[str]:
    """Hex digests of several files, in their order, hashed at once. Raises as `open_input`, at the file's turn."""
    with ThreadPoolExecutor(cores()) as pool:
        try:
            yield from pool.map(sha256, paths)
        finally:
            pool.shutdown(cancel_futures=True)


def cores() -> int:
    """How many threads this process can run at once."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def write_whole(path: Path, content: bytes | str) -> str:
    """Writes a file so that no reader, and no crash, ever sees half of it. Returns its sha256.

    Where the path is a link, what it leads to is replaced, not the link. The file's mode follows the umask.
    """
    data = content.encode() if isinstance(content, str) else content
    return write_whole_with(path, lambda temporary: temporary.write_bytes(data))


def write_whole_with(path: Path, write: Callable[[Path], object]) -> str:
    """The same for a writer that takes a path."""
    with machine_errors(path):
        path = Path(os.path.realpath(path))
        if path.exists() and not path.is_file():
            raise InputError(
                "cannot write here: there is something that is no file", where=str(path), hint="choose another name"
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_name(f".{os.getpid()}.{threading.get_native_id()}.qspec.tmp")
        try:
            beside.mkdir(exist_ok=True)  # a folder: libraries put files of other names beside what they write
            temporary = beside / path.name
            write(temporary)
            temporary.chmod(beside.stat().st_mode & 0o666)  # the umask's, where the writer chose another
            with temporary.open("rb+") as stream:
                os.fsync(stream.fileno())
            digest = sha256(temporary)
            temporary.replace(path)
        finally:
            shutil.rmtree(beside, ignore_errors=True)
        sync_folder(path.parent)
    return digest


def unfinished(name: str) -> bool:
    """Whether a file name is one that `write_whole` gives what is not whole yet."""
    return _UNFINISHED.fullmatch(name) is not None


def remove_unfinished(folder: Path) -> None:
    """Removes what killed writers left below a folder; what another process, which lives, is writing stays."""
    for temporary in list(folder.rglob(".*.qspec.tmp")):
        match = _UNFINISHED.fullmatch(temporary.name)
        if match and not _lives(int(match[1])):
            shutil.rmtree(temporary, ignore_errors=True)


def _lives(process: int) -> bool:
    """Whether it is another process that runs: an earlier one may have had this one's id."""
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return process != os.getpid()


def sync_folder(folder: Path) -> None:
    """Makes renames in a folder survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def take_lock(path: Path, *, wait: bool) -> IO[bytes] | None:
    """The lock file, open and held until it is closed; None where another process holds it and `wait` is False.

    Whoever removes the file must hold it. The folder must be there. Raises OSError where no file can be made.
    """
    while True:
        file = path.open("ab")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            file.close()
            return None
        try:
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
        except FileNotFoundError:
            pass  # removed by the one who held it before us: this is another file than the next one will take
        file.close()


def require_folder(folder: Path) -> None:
    """Before long work: raises InputError where no file could be written into `folder`, which need not exist yet."""
    place = Path(os.path.realpath(folder))
    existing = next((path for path in (place, *place.parents) if os.path.lexists(path)), Path("/"))
    if not existing.is_dir():
        raise _refused("Not a directory", existing)
    if not os.access(existing, os.W_OK | os.X_OK):
        raise _refused("Permission denied, or a file system that can only be read", existing)


def require_file(path: Path) -> None:
    """Before long work: raises InputError where the file `path` could not be written; it need not exist yet."""
    place = Path(os.path.realpath(path))
    if place.exists() and not place.is_file():
        raise _refused("there is something that is no file", place)
    require_folder(place.parent)


@contextmanager
def machine_errors(path: Path) -> Iterator[None]:
    """Turns what the file system refuses into one clear message: disk full, no permission, not a folder.

    Also where a library reports it by an exception of its own that names the system's error.
    """
    try:
        yield
    except Exception as error:
        trouble = machine_error(error, path)
        if trouble is None:
            raise
        raise trouble from error


def machine_error(error: Exception, path: Path) -> QspecError | None:
    """What the system refused while `path` was written, as one message; None for an error of another kind."""
    number = _number(error)
    if number is None:
        return None
    if number in _FULL:
        what, hint = _FULL[number]
        return MachineError(what, where=str(path), hint=hint)
    if number in _REFUSED:
        return _refused(os.strerror(number), path)
    return MachineError(f"writing failed: {os.strerror(number)}", where=str(path))


def system_error(error: OSError) -> MachineError:
    """What the system refused anywhere else, as one message: a cache, a file that went away while it was read."""
    if error.errno in _FULL:
        what, hint = _FULL[error.errno]
        return MachineError(what, where=_path_of(error), hint=hint)
    return MachineError(f"the system refused a file: {error.strerror or error}", where=_path_of(error))


@contextmanager
def read_errors(path: Path) -> Iterator[None]:
    """Turns what keeps a file from being read into an InputError, but for its absence: of that, each caller knows
    what it means."""
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        raise InputError(
            f"a file cannot be read: {error.strerror or error}",
            where=_path_of(error) or str(path),
            hint="check its permissions, and those of the folders above it",
        ) from error


def _path_of(error: OSError) -> str | None:
    return None if error.filename is None else os.fsdecode(error.filename)


def _number(error: Exception) -> int | None:
    """The system's number of an error, 0 where it has none; None where the system reported nothing."""
    if isinstance(error, OSError):
        return error.errno or 0
    match = _NUMBER.search(str(error))
    return int(match[1]) if match and not isinstance(error, QspecError) else None


def _refused(why: str, path: Path) -> InputError:
    return InputError(
        f"cannot write here: {why}", where=str(path), hint="choose another place, or change what stands in the way"
    )
