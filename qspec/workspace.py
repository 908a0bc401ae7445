"""The folder in which an artifact grows, and its place: what may lie there, what a resumed run takes over, the swap.

A compile writes into `<out>.partial`, block by block, and renames that folder to `<out>` when everything is there.
Killed at any moment, the next run with the same inputs goes on after the last whole block. Nothing is removed, in
either folder, but what qspec wrote there itself: the work folder names its files before it writes them, and an older
artifact at `<out>` must be one, whole and without a file of anybody else's.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path, PurePath
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors.torch import load_file, save_file
from torch import Tensor

from qspec.artifact import (
    REPORT_PARTIAL,
    WORK,
    Snapshot,
    entries,
    own_files,
    report_lock,
    require_outside_artifacts,
    snapshot,
)
from qspec.catalog import PACKING
from qspec.errors import InputError, QspecError
from qspec.files import (
    machine_errors,
    read_input,
    require_folder,
    sha256,
    sync_folder,
    take_lock,
    write_whole,
    write_whole_with,
)
from qspec.kernels import generate
from qspec.manifest import (
    FORMAT,
    MANIFEST,
    CalibrationRecord,
    KernelRecord,
    Manifest,
    ModelRecord,
    ModuleRecord,
    content_digest,
)
from qspec.models.shards import INDEX
from qspec.plan import Plan
from qspec.version import __version__

LOCK, NAMES, PROGRESS, REPLACED = WORK[:4]
TREES = ("report", REPORT_PARTIAL, REPLACED)  # folders that are ours as a whole, in a folder that is ours
HEAD = "qspec writes an artifact here; these are the names of its files"


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ShardRecord(_Record):
    """A shard that is whole. tensors: bytes of each. modules: what was compiled, for a block's shard."""

    sha256: str
    tensors: dict[str, int]
    modules: tuple[ModuleRecord, ...]


class _Progress(_Record):
    """inputs: everything that the shards depend on."""

    inputs: dict[str, Any]
    shards: dict[str, ShardRecord]
    digest: str = ""

    def text(self) -> str:
        """As it is stored, sealed by the hash of its content."""
        return json.dumps({**self._content(), "digest": content_digest(self._content())})

    def _content(self) -> dict[str, Any]:
        return self.model_dump(mode="json", exclude={"digest"})

    @classmethod
    def read(cls, path: Path) -> _Progress | None:
        """None where there is no record, or it is not as it was written."""
        try:
            progress = cls.model_validate_json(read_input(path)) if path.is_file() else None
        except (ValidationError, OSError):
            return None
        return progress if progress is not None and progress.digest == content_digest(progress._content()) else None


def require_place(out: Path) -> Path:
    """Where the artifact will lie, links followed; to be called before long work.

    Raises InputError where `out` or the folder that it grows in holds what qspec did not write, or cannot be written.
    """
    with machine_errors(out):
        place, here = Path(os.path.realpath(out)), Path.cwd()
    if os.path.ismount(place):
        raise InputError(
            "the output folder is the root of a file system, and cannot be put in place as a whole",
            where=str(place),
            hint="choose a folder inside of it",
        )
    if here.is_relative_to(place):
        raise InputError(
            "the output folder is the one that this command runs in, or one above it, and is put in place as a whole",
            where=str(place),
            hint="choose a folder inside of it, or run the command from elsewhere",
        )
    require_folder(place.parent)
    require_outside_artifacts(place)
    if os.path.lexists(place):
        if not place.is_dir():
            raise InputError("the output folder is a file", where=str(place), hint="choose another --out folder")
        with machine_errors(place):
            own_files(place)
    _names_of(_partial(place))
    return place


def _partial(place: Path) -> Path:
    return place.with_name(f"{place.name}.partial")


def _names_of(folder: Path) -> set[str]:
    """The names that a work folder gives; none where it is new. Raises InputError where it holds anything else."""
    if os.path.lexists(folder) and not folder.is_dir():
        raise _foreign(folder)
    with machine_errors(folder):
        present = set(entries(folder))
        names = set() if present <= {LOCK} else _read_names(folder / NAMES)
    if strange := sorted(name for name in present if not (name in names or PurePath(name).parts[0] in (*WORK, *TREES))):
        raise _foreign(folder / strange[0])
    return names


def _read_names(path: Path) -> set[str]:
    """A torn last line, of a killed run, is of a file that was not written. Raises InputError where it is no list."""
    try:
        head, *lines = read_input(path).decode().split("\n")
    except (OSError, UnicodeDecodeError):
        head, lines = "", []
    if head != HEAD:
        raise _foreign(path.parent)
    names = set()
    for line in lines:
        try:
            names.add(str(json.loads(line)))
        except (ValueError, RecursionError):
            continue
    return names


def _foreign(path: Path) -> InputError:
    return InputError(
        "the folder that the artifact is to grow in holds something that qspec did not write",
        where=str(path),
        hint="move it away, or choose another --out folder",
    )


class Workspace:
    """The folder in which an artifact grows, with a record of the shards that are whole.

    out: where the artifact will lie. thrown_away: the inputs of an interrupted run whose shards could not be taken
    over, since they differ; empty where that run's record is damaged; None where nothing was lost.
    """

    def __init__(self, out: Path, inputs: Mapping[str, Any]) -> None:
        """Opens or begins `<out>.partial`. inputs: everything that the result depends on, as plain JSON values.

        Raises InputError where either folder holds something else, cannot be written, or is being compiled into.
        """
        self.out = require_place(out)
        self.folder = _partial(self.out)
        self.thrown_away: Mapping[str, Any] | None = None
        self._written: dict[str, str] = {}
        with machine_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = take_lock(self.folder / LOCK, wait=False)
        if lock is None:
            raise InputError(
                "another compile is writing here", where=str(self.out), hint="wait for it, or choose another --out"
            )
        self._lock = lock
        with ExitStack() as failed, machine_errors(self.folder):
            failed.callback(lock.close)
            self._names = _names_of(self.folder)
            if not (self.folder / NAMES).exists():
                write_whole(self.folder / NAMES, f"{HEAD}\n")
            if (self.folder / REPLACED).exists() and not self.out.exists():
                (self.folder / REPLACED).rename(self.out)  # killed between the two renames of a swap
            self._shards = self._taken_over(inputs)
            self._remove_all_but(self._shards)
            failed.pop_all()
        self._inputs = dict(inputs)

    def _taken_over(self, inputs: Mapping[str, Any]) -> dict[str, ShardRecord]:
        progress = _Progress.read(self.folder / PROGRESS)
        if progress is None:
            if (self.folder / PROGRESS).exists():
                self.thrown_away = {}
            return {}
        if progress.inputs == json.loads(json.dumps(inputs)):
            return dict(progress.shards)
        if progress.shards:
            self.thrown_away = progress.inputs
        return {}

    def _remove_all_but(self, kept: Mapping[str, ShardRecord]) -> None:
        """What an interrupted run left and this one does not take over."""
        for path in list(self.folder.iterdir()):
            if path.name in (LOCK, NAMES, PROGRESS, REPLACED) or path.name in kept:
                continue
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        if not kept:
            (self.folder / PROGRESS).unlink(missing_ok=True)

    def finished(self, shard: str) -> ShardRecord | None:
        """What was recorded with a shard, if its file is there and whole."""
        record = self._shards.get(shard)
        path = self.folder / shard
        if record is None or not path.is_file() or sha256(path) != record.sha256:
            return None
        self._written[shard] = record.sha256
        return record

    def shards(self) -> int:
        """How many shards are whole."""
        return len(self._shards)

    @property
    def kept(self) -> str:
        """What an interrupted run leaves, in words."""
        return f"{self.shards()} finished shards are kept in {self.folder}"

    def write_shard(self, shard: str, tensors: Mapping[str, Tensor], modules: Sequence[ModuleRecord] = ()) -> None:
        """Writes a safetensors file and then records it."""
        plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        self._name(shard)
        digest = write_whole_with(self.folder / shard, lambda path: save_file(plain, path, metadata={"format": "pt"}))
        sizes = {name: tensor.numel() * tensor.element_size() for name, tensor in plain.items()}
        self._written[shard] = digest
        self._shards[shard] = ShardRecord(sha256=digest, tensors=sizes, modules=tuple(modules))
        write_whole(self.folder / PROGRESS, _Progress(inputs=self._inputs, shards=self._shards).text())

    def read_shard(self, shard: str) -> dict[str, Tensor]:
        """The tensors of a shard that is written."""
        tensors: dict[str, Tensor] = load_file(self.folder / shard)
        return tensors

    def write(self, name: str, content: bytes | str) -> None:
        """Writes a file of the artifact."""
        self._name(name)
        self._written[name] = write_whole(self.folder / name, content)

    def _name(self, name: str) -> None:
        """Notes a file's name before the file is there: whatever happens then, the next run knows it for its own."""
        if name in self._names:
            return
        with machine_errors(self.folder / NAMES), (self.folder / NAMES).open("ab") as file:
            file.write(f"\n{json.dumps(name)}".encode())
            file.flush()
            os.fsync(file.fileno())
        self._names.add(name)

    def write_index(self, shards: list[str]) -> None:
        """The index file that transformers and we read."""
        weight_map, total = {}, 0
        for shard in shards:
            for name, size in self._shards[shard].tensors.items():
                weight_map[name] = shard
                total += size
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        self.write(INDEX, json.dumps(index, indent=2) + "\n")

    def hashes(self) -> dict[str, str]:
        """sha256 of every file that this run wrote or took over; the manifest's own and the report's left out."""
        return {name: digest for name, digest in sorted(self._written.items()) if name != MANIFEST}

    def seal(
        self, plan: Plan, model: ModelRecord, calibration: CalibrationRecord, records: Sequence[ModuleRecord]
    ) -> Manifest:
        """Generates the plan's kernels and seals everything that is there. records: of all modules."""
        kernels = {kernel.name: f"kernels/{generate.file_name(kernel)}" for kernel in plan.kernels()}
        for kernel in plan.kernels():
            self.write(kernels[kernel.name], generate.render(kernel))
        hashes = self.hashes()
        manifest = Manifest(
            format=FORMAT,
            packing=PACKING,
            qspec=__version__,
            name=plan.spec.name,
            recipe=plan.spec.text,
            model=model,
            calibration=calibration,
            modules=tuple(records),
            kernels=tuple(
                KernelRecord(name=name, file=file, sha256=hashes[file]) for name, file in sorted(kernels.items())
            ),
            bits_per_weight=plan.bits_per_weight,
            bits_per_weight_model=plan.bits_per_weight_model,
            bytes_before=plan.bytes_before,
            bytes_after=plan.bytes_after,
            files=hashes,
        ).sealed()
        self.write(MANIFEST, manifest.text())
        return manifest

    def publish(self) -> Path:
        """Renames the folder to its final name; an older artifact of that name goes away only then.

        Raises InputError where something else has come to lie there, or in the folder; both stay as they are.
        """
        try:
            with machine_errors(self.out):
                _names_of(self.folder)
                self._swap()
                for name in (LOCK, NAMES, PROGRESS):
                    (self.out / name).unlink(missing_ok=True)
                sync_folder(self.out.parent)
                shutil.rmtree(self.out / REPLACED, ignore_errors=True)
        except QspecError as error:
            if not self.folder.exists():
                raise
            hint = f"{error.hint or 'run the same command again'}; what was compiled is kept in {self.folder}"
            raise type(error)(error.what, where=error.where, hint=hint) from error
        self.close()
        return self.out

    def _swap(self) -> None:
        if os.path.lexists(self.out):
            before = snapshot(self.out)
            own_files(self.out)
            if before:
                self._set_aside(before)
        self.folder.rename(self.out)  # the system refuses it where a folder that is not empty has come to lie there

    def _set_aside(self, before: Snapshot) -> None:
        """Moves the older artifact out of the way; back, where a file came into it after it was looked through."""
        aside = self.folder / REPLACED
        shutil.rmtree(aside, ignore_errors=True)
        with report_lock(self.out):
            self.out.rename(aside)
        if snapshot(aside) != before:
            aside.rename(self.out)
            raise InputError(
                "the output folder was written to while it was being replaced",
                where=str(self.out),
                hint="run the same command again",
            )

    def close(self) -> None:
        """Lets go of the lock; the folder stays, so that the next run can go on."""
        self._lock.close()
