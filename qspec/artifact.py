"""The artifact: what a compiled model's folder holds, its manifest and hashes, and the workspace it grows in.

A compile writes into `<out>.partial`, block by block, and renames that folder to `<out>` when everything is there.
Killed at any moment, the next run with the same inputs goes on after the last whole block.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors.torch import load_file, save_file
from torch import Tensor

from qspec.catalog import GemmKernel, LayerKernels, RowKernel
from qspec.errors import InputError
from qspec.files import machine_errors, remove_unfinished, sha256, sync_folder, write_whole, write_whole_with

FORMAT: Final = 5  # 4: codes of 2 and 3 bits that meet 16-bit activations lie in another order; 5: bits of the model
MANIFEST = "qspec.json"
INDEX = "model.safetensors.index.json"
REPORT_SEAL = "report/SHA256SUMS"
HIDDEN = (".progress.json", ".lock")  # the workspace's own; a kill right after publishing may leave them behind


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelRecord(_Record):
    """Which checkpoint was compiled. replacements: what a stand-in's own data stood in for."""

    id: str
    revision: str
    family: str
    standin: bool
    replacements: tuple[str, ...]
    files: dict[str, str]


class CalibrationRecord(_Record):
    """The rows that statistics were taken from. tokens_sha256: hash of the exact masked tokens and their weights.

    text, mask, weigh: as a recipe says them; mask None for rollouts. rows: samples times draws.
    """

    tokens_sha256: str
    text: str
    samples: int
    length: int
    mask: str | None
    draws: int
    rows: int
    weigh: str
    seed: int


class ModuleRecord(_Record):
    """One module of the model as it was compiled.

    row, gemm: kernels as in the catalogue, None where kept. transform: the module whose tensors hold the input's.
    merged: the first module of those that are computed as one product; each has its own tensors.
    """

    role: str
    module: str
    scheme: str | None
    label: str
    bits: float
    in_features: int
    out_features: int
    bias: bool
    rule: str | None
    passes: tuple[str, ...]
    row: dict[str, Any] | None = None
    gemm: dict[str, Any] | None = None
    transform: str | None = None
    merged: str | None = None
    sqnr_db: float | None = None
    weight_sqnr_db: float | None = None

    @property
    def kernels(self) -> LayerKernels | None:
        """The catalogue's value."""
        if self.gemm is None:
            return None
        row = RowKernel(**self.row | {"rotations": tuple(self.row["rotations"])}) if self.row else None
        return LayerKernels(row, GemmKernel(**self.gemm))


class KernelRecord(_Record):
    name: str
    file: str
    sha256: str


class Manifest(_Record):
    """qspec.json.

    bits_per_weight: of the blocks; bits_per_weight_model: with embedding and head. files: sha256 of every file of the
    artifact but this one and the report's own seal.
    """

    format: Literal[5]
    qspec: str
    name: str
    recipe: str
    model: ModelRecord
    calibration: CalibrationRecord
    modules: tuple[ModuleRecord, ...]
    kernels: tuple[KernelRecord, ...]
    bits_per_weight: float
    bits_per_weight_model: float
    bytes_before: int
    bytes_after: int
    files: dict[str, str]
    digest: str = ""

    def sealed(self) -> Manifest:
        """The manifest with the hash of its own content."""
        return self.model_copy(update={"digest": self._own_digest()})

    def text(self) -> str:
        """The one spelling of a manifest: qspec.json holds exactly this."""
        return self.model_dump_json(indent=1) + "\n"

    def _own_digest(self) -> str:
        content = self.model_dump(mode="json", exclude={"digest"})
        return _digest(json.dumps(content, sort_keys=True))

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Raises InputError where qspec.json is absent, is not a manifest or was changed."""
        path = folder / MANIFEST
        try:
            raw = path.read_bytes()
            manifest = cls.model_validate_json(raw)
        except FileNotFoundError:
            raise InputError(
                "not a qspec artifact: there is no qspec.json", where=str(folder), hint="compile a recipe first"
            ) from None
        except ValidationError as error:
            first = error.errors()[0]
            raise InputError(
                f"qspec.json is not a manifest of format {FORMAT}: {first['msg']}",
                where=f"{path} at {'.'.join(map(str, first['loc'])) or 'top level'}",
                hint="compile the recipe again",
            ) from None
        if manifest.digest != manifest._own_digest() or raw != manifest.text().encode():
            raise _changed(path)
        return manifest


def verify(folder: Path) -> Manifest:
    """The manifest, after every file's hash was checked.

    Raises InputError naming the first file that is missing, was changed, or does not belong to the artifact. Hidden
    files at the top (a hub's .gitattributes) are nobody's: nothing reads them.
    """
    manifest = Manifest.read(folder)
    _verify_files(folder, manifest.files)
    report = folder / REPORT_SEAL
    listed = {MANIFEST, *manifest.files}
    if report.is_file():
        sums = _read_sums(report)
        _verify_files(folder, sums)
        listed |= {REPORT_SEAL, *sums}
    present = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file() and "__pycache__" not in p.parts}
    if strange := sorted(name for name in present - listed if not name.startswith(".")):
        raise InputError(
            "a file does not belong to the artifact",
            where=str(folder / strange[0]),
            hint="remove it, or compile the recipe again",
        )
    return manifest


def seal_report(folder: Path) -> None:
    """Writes the hashes of the report's files; the manifest leaves them out because timings differ from run to run.

    One line a file, as sha256sum writes them; the last line is the hash of the lines above it.
    """
    files = sorted(p for p in (folder / "report").rglob("*") if p.is_file() and p != folder / REPORT_SEAL)
    lines = "".join(f"{sha256(p)}  {p.relative_to(folder)}\n" for p in files)
    write_whole(folder / REPORT_SEAL, f"{lines}{_digest(lines)}  {REPORT_SEAL}\n")


def _read_sums(path: Path) -> dict[str, str]:
    """name -> sha256 of the report's files; raises InputError where the seal itself was changed."""
    text = path.read_bytes().decode(errors="replace")
    lines = text.split("\n")
    above = "".join(f"{line}\n" for line in lines[:-2])
    if text != f"{above}{_digest(above)}  {REPORT_SEAL}\n":
        raise _changed(path)
    sums = {}
    for line in lines[:-2]:
        digest, _, name = line.partition("  ")
        if ".." in Path(name).parts or Path(name).is_absolute():
            raise _changed(path)
        sums[name] = digest
    return sums


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _verify_files(folder: Path, files: Mapping[str, str]) -> None:
    for name, digest in files.items():
        path = inside(folder, name)
        if not path.is_file():
            raise InputError("a file of the artifact is missing", where=str(path), hint="compile the recipe again")
        if sha256(path) != digest:
            raise _changed(path)


def _changed(path: Path) -> InputError:
    return InputError(
        "a file of the artifact was changed after it was written: its sha256 does not match",
        where=str(path),
        hint="compile the recipe again, or restore the file",
    )


class Workspace:
    """The folder in which an artifact grows, with a record of the shards that are whole."""

    def __init__(self, out: Path, key: str) -> None:
        """Opens or begins `<out>.partial`. key: digest of everything that the result depends on.

        Raises InputError where `out` holds something else, cannot be written, or is being compiled into right now.
        """
        self.out = out
        self.folder = out.with_name(out.name + ".partial")
        if out.exists() and not (out / MANIFEST).is_file() and (not out.is_dir() or any(out.iterdir())):
            raise InputError(
                "the output folder holds something that is not a qspec artifact",
                where=str(out),
                hint="choose another --out folder, or empty this one",
            )
        with machine_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = (self.folder / HIDDEN[1]).open("w")
            self._take_lock()
            remove_unfinished(self.folder)
        self._progress_file = self.folder / HIDDEN[0]
        self._progress = self._read_progress(key)

    def _take_lock(self) -> None:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.close()
            raise InputError(
                "another compile is writing here", where=str(self.out), hint="wait for it, or choose another --out"
            ) from None

    def _read_progress(self, key: str) -> dict[str, Any]:
        try:
            progress = json.loads(self._progress_file.read_bytes())
        except (FileNotFoundError, ValueError):
            progress = {}
        if not isinstance(progress, dict) or progress.get("key") != key:
            self._empty()
            return {"key": key, "shards": {}}
        return progress

    def _empty(self) -> None:
        for path in self.folder.iterdir():
            if path.name == HIDDEN[1]:
                continue
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    def finished(self, shard: str) -> dict[str, Any] | None:
        """What was recorded with a shard, if its file is there and whole."""
        record = self._progress["shards"].get(shard)
        path = self.folder / shard
        if record is None or not path.is_file() or sha256(path) != record["sha256"]:
            return None
        return dict(record)

    def shards(self) -> int:
        """How many shards are whole."""
        return len(self._progress["shards"])

    def write_shard(self, shard: str, tensors: Mapping[str, Tensor], extra: Mapping[str, Any]) -> None:
        """Writes a safetensors file and then records it."""
        plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        digest = write_whole_with(self.folder / shard, lambda path: save_file(plain, path, metadata={"format": "pt"}))
        sizes = {name: tensor.numel() * tensor.element_size() for name, tensor in plain.items()}
        self._progress["shards"][shard] = {"sha256": digest, "tensors": sizes, **extra}
        write_whole(self._progress_file, json.dumps(self._progress))

    def read_shard(self, shard: str) -> dict[str, Tensor]:
        """The tensors of a shard that is written."""
        tensors: dict[str, Tensor] = load_file(self.folder / shard)
        return tensors

    def write(self, name: str, content: bytes | str) -> None:
        write_whole(self.folder / name, content)

    def write_index(self, shards: list[str]) -> None:
        """The index file that transformers and we read."""
        weight_map, total = {}, 0
        for shard in shards:
            for name, size in self._progress["shards"][shard]["tensors"].items():
                weight_map[name] = shard
                total += size
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        self.write(INDEX, json.dumps(index, indent=2) + "\n")

    def hashes(self) -> dict[str, str]:
        """sha256 of every file of the artifact so far, the report and hidden files left out."""
        files = sorted(p for p in self.folder.rglob("*") if p.is_file())
        names = {str(p.relative_to(self.folder)): p for p in files}
        return {
            name: sha256(path)
            for name, path in names.items()
            if not name.startswith((".", "report/")) and name != MANIFEST and "__pycache__" not in path.parts
        }

    def publish(self) -> Path:
        """Renames the folder to its final name; an older artifact of that name goes away only then."""
        with machine_errors(self.out):
            for cache in list(self.folder.rglob("__pycache__")):
                shutil.rmtree(cache)
            old = self.out.with_name(self.out.name + ".old")
            shutil.rmtree(old, ignore_errors=True)
            if self.out.exists():
                self.out.replace(old)
            self.folder.replace(self.out)
            for name in HIDDEN:
                (self.out / name).unlink(missing_ok=True)
            sync_folder(self.out.parent)
            shutil.rmtree(old, ignore_errors=True)
        self.close()
        return self.out

    def close(self) -> None:
        """Lets go of the lock; the folder stays, so that the next run can go on."""
        self._lock.close()


def kernel_fields(kernel: RowKernel | GemmKernel | None) -> dict[str, Any] | None:
    """A kernel as the manifest stores it: JSON's own values."""
    if kernel is None:
        return None
    return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(kernel).items()}


def inside(folder: Path, name: str) -> Path:
    """folder / name; raises InputError where the name leaves the folder."""
    path = Path(os.path.normpath(folder / name))
    if Path(name).is_absolute() or not path.is_relative_to(folder):
        raise InputError("a file name leaves the artifact's folder", where=name)
    return path
