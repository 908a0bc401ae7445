"""The artifact: what a compiled model's folder holds beside its manifest, and the proof that all of it is ours."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import TypeAlias

from qspec.errors import InputError
from qspec.files import read_errors, read_input, sha256, sha256_each, take_lock, unfinished, write_whole
from qspec.manifest import MANIFEST, MAX_MANIFEST_BYTES, Manifest, changed, content_digest

REPORT_SEAL = "report/SHA256SUMS"
Snapshot: TypeAlias = frozenset[tuple[str, int, int, int]]
REPORT_LOCK = ".report.lock"
REPORT_PARTIAL = ".report.partial"
MEASURED = ".measured"  # batches of an evaluation that is not over
# What a kill may leave behind:
WORK = (".lock", ".names", ".progress.json", ".replaced", REPORT_LOCK, REPORT_PARTIAL, MEASURED)


def verify(folder: Path, *, shards: bool = True) -> Manifest:
    """The manifest, after every file's hash was checked, of weights that this version reads.

    shards: whether of those with tensors too; else whoever reads them checks theirs (`qspec.tensors`).
    Raises InputError naming the first file that is missing, was changed, or does not belong to the artifact. Hidden
    files at the top (a hub's .gitattributes) are nobody's: nothing reads them.
    """
    with read_errors(folder):
        manifest = Manifest.read(folder)
        manifest.require_packing(folder)
        return _verified(folder, manifest, shards)


def _verified(folder: Path, manifest: Manifest, shards: bool) -> Manifest:
    left_out = set() if shards else set(manifest.shards)
    _verify_files(folder, {name: digest for name, digest in manifest.files.items() if name not in left_out})
    while True:
        before = _identity(folder / REPORT_SEAL)
        try:
            listed = {MANIFEST, *manifest.files, *_verify_report(folder)}
            present = {name for name in entries(folder) if not name.startswith(".") and not _bytecode(name)}
            if strange := sorted(present - listed):
                raise InputError(
                    "a file does not belong to the artifact", where=str(folder / strange[0]), hint="move it away"
                )
            return manifest
        except (InputError, FileNotFoundError):
            if _identity(folder / REPORT_SEAL) == before:
                raise  # else another process has just replaced the report


def verify_report_data(folder: Path) -> Path:
    """The report.json of an artifact. Raises InputError where it was changed, or a file is among the report's that
    it does not know; what is rendered from report.json may be missing or changed."""
    seal, data = folder / REPORT_SEAL, folder / "report" / "report.json"
    if not seal.is_file() or not data.is_file():
        raise InputError(
            "the artifact has no report, or it lost its seal", where=str(seal), hint="measure it: qspec eval ARTIFACT"
        )
    sums = _read_sums(seal)
    if strange := sorted(_report_entries(folder) - {REPORT_SEAL, *sums}):
        raise InputError("a file does not belong to the report", where=str(folder / strange[0]), hint="move it away")
    if sums.get("report/report.json") != sha256(data):
        raise InputError(
            "the report's data were changed after they were measured: their sha256 does not match",
            where=str(data),
            hint="restore the file, or measure again: qspec eval ARTIFACT",
        )
    return data


def own_files(folder: Path) -> None:
    """Proof that nothing is lost with a folder: it is empty, or an artifact, of any version, and nothing else.

    Every file must be listed in the manifest or the report's seal, and be as it was written. Raises InputError that
    names the first one of which that is not true. Files that are missing do not matter.
    """
    present = sorted(entries(folder))
    if not present:
        return
    hashes = _sealed_files(folder / MANIFEST)
    if hashes is None:
        raise InputError(
            "the output folder holds something that is not a qspec artifact",
            where=str(folder / present[0]),
            hint="choose another --out folder, or empty this one",
        )
    if (folder / REPORT_SEAL).is_file():
        hashes = {**hashes, **_read_sums(folder / REPORT_SEAL)}
    for name in present:
        path = folder / name
        ours = name in (MANIFEST, REPORT_SEAL) or PurePath(name).parts[0] in WORK or _bytecode(name)
        if not ours and (name not in hashes or path.is_symlink()):
            raise InputError(
                "the output folder holds a file that qspec did not write",
                where=str(path),
                hint="move it away, or choose another --out folder",
            )
        if not ours and sha256(path) != hashes[name]:
            raise InputError(
                "the output folder holds a file that was changed after qspec wrote it",
                where=str(path),
                hint="keep what you need of it and remove it, or choose another --out folder",
            )


def snapshot(folder: Path) -> Snapshot:
    """Every file of an artifact but qspec's hidden ones: name, size, time, inode. Another one after any change."""
    files = set()
    for name in entries(folder):
        if PurePath(name).parts[0] not in WORK:
            status = (folder / name).lstat()
            files.add((name, status.st_size, status.st_mtime_ns, status.st_ino))
    return frozenset(files)


def require_outside_artifacts(path: Path) -> None:
    """Raises InputError where a path lies in an artifact, which an added file would make impossible to load."""
    for parent in Path(os.path.realpath(path)).parents:
        if _sealed_files(parent / MANIFEST) is not None:
            raise InputError(
                "this is inside an artifact, which would no longer load with another file in it",
                where=str(path),
                hint=f"choose a place outside of {parent}",
            )


@contextmanager
def report_lock(folder: Path) -> Iterator[None]:
    """The right to replace an artifact's report, or the artifact; waits for whoever has it.

    Raises OSError where the folder cannot be written.
    """
    path = folder / REPORT_LOCK
    file = take_lock(path, wait=True)
    assert file is not None
    with file:
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def seal_report(folder: Path) -> None:
    """Writes the hashes of the report's files; the manifest leaves them out because timings differ from run to run.

    One line a file, as sha256sum writes them; the last line is the hash of the lines above it.
    """
    files = sorted(p for p in (folder / "report").rglob("*") if p.is_file() and p != folder / REPORT_SEAL)
    lines = "".join(f"{sha256(p)}  {p.relative_to(folder)}\n" for p in files)
    write_whole(folder / REPORT_SEAL, f"{lines}{_digest(lines)}  {REPORT_SEAL}\n")


def _verify_report(folder: Path) -> set[str]:
    """The names of the report's files, seal included; none where there is no report."""
    seal = folder / REPORT_SEAL
    if not seal.is_file():
        return set()
    sums = _read_sums(seal)
    _verify_files(folder, sums)
    return {REPORT_SEAL, *sums}


def _read_sums(path: Path) -> dict[str, str]:
    """name -> sha256 of the report's files; raises InputError where the seal itself was changed."""
    try:
        text = read_input(path, MAX_MANIFEST_BYTES).decode(errors="replace")
    except OSError as error:
        raise InputError(f"the report's seal cannot be read: {error.strerror}", where=str(path)) from None
    lines = text.split("\n")
    above = "".join(f"{line}\n" for line in lines[:-2])
    if text != f"{above}{_digest(above)}  {REPORT_SEAL}\n":
        raise changed(path)
    sums = {}
    for line in lines[:-2]:
        digest, _, name = line.partition("  ")
        if not name.startswith("report/") or ".." in PurePath(name).parts:
            raise changed(path)
        sums[name] = digest
    return sums


def _sealed_files(path: Path) -> dict[str, str] | None:
    """name -> sha256 of the files that a manifest of any version lists; None for what is no sealed manifest."""
    try:
        content = json.loads(read_input(path, MAX_MANIFEST_BYTES)) if path.is_file() else None
        if not isinstance(content, dict) or not isinstance(content.get("files"), dict):
            return None
        digest = content.pop("digest", None)
        return content["files"] if digest == content_digest(content) else None
    except (ValueError, RecursionError, OSError):
        return None


def entries(folder: Path) -> Iterator[str]:
    """Every file and every link below a folder, by its name from there; what killed writers left is left out.

    Raises OSError where a folder cannot be read.
    """
    for place, folders, files in os.walk(folder, onerror=_unless_gone):
        links = [name for name in folders if (Path(place) / name).is_symlink()]
        folders[:] = [name for name in folders if not unfinished(name)]
        for name in [*files, *links]:
            yield str((Path(place) / name).relative_to(folder))


def _unless_gone(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise error


def _report_entries(folder: Path) -> set[str]:
    return {f"report/{name}" for name in entries(folder / "report")}


def _bytecode(name: str) -> bool:
    """Whether Python made this file when a kernel was imported."""
    path = PurePath(name)
    return path.parent.name == "__pycache__" and path.suffix == ".pyc"


def _identity(path: Path) -> tuple[int, int] | None:
    """Which file lies there now; None where none does."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _verify_files(folder: Path, files: Mapping[str, str]) -> None:
    paths = [inside(folder, name) for name in files]
    require_there(paths)
    for path, digest, found in zip(paths, files.values(), sha256_each(paths), strict=True):
        if found != digest:
            raise changed(path)


def require_there(files: Iterable[Path]) -> None:
    """Raises InputError of the first file of an artifact that is missing."""
    for path in files:
        if not path.is_file():
            raise InputError("a file of the artifact is missing", where=str(path), hint="compile the recipe again")


def inside(folder: Path, name: str) -> Path:
    """folder / name; raises InputError where the name leaves the folder. What links lead to is not looked at."""
    path = PurePath(name)
    if not path.parts or path.is_absolute() or ".." in path.parts or "\0" in name:
        raise InputError("a file name leaves the artifact's folder", where=name)
    return folder / path
