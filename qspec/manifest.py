"""qspec.json, the manifest of an artifact: what a compiled model is made of, each file with its hash."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

from qspec.catalog import PACKING, ActivationKernel, GemmKernel, LayerKernels
from qspec.errors import InputError
from qspec.files import read_errors, read_input
from qspec.seeds import LARGEST_SEED
from qspec.version import __version__

FORMAT: Final = 7  # of the manifest; 5: bits of the model; 6: other scales; 7: packing has a number of its own
MANIFEST = "qspec.json"
MAX_MANIFEST_BYTES = 64 << 20  # a module takes half a kilobyte
_ROLE = re.compile(r"[a-z_]+(\.[a-z]+)?|blocks\[(0|[1-9][0-9]{0,3})\](\.[a-z_]+(\[(0|[1-9][0-9]{0,3})\])?)+")
Count = Annotated[int, Field(ge=1, le=1 << 40)]
Bytes = Annotated[int, Field(ge=0, le=1 << 60)]
Bits = Annotated[float, Field(ge=0, allow_inf_nan=False)]


def _plain(name: str) -> str:
    """A file's name below the artifact's folder, in its one spelling."""
    if (
        not name
        or "\\" in name
        or "\0" in name
        or name.startswith("/")
        or any(part in ("", ".", "..") for part in name.split("/"))
    ):
        raise ValueError("a file name leaves the artifact's folder")
    return name


FileName = Annotated[str, AfterValidator(_plain)]


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


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

    text, mask, weigh: as a recipe says them; mask None for rollouts. rows: samples times draws. drawn: tokens of text
    that the samples, or the rollouts' prompts, hold together; distinct: how many of them are different places of it.
    """

    tokens_sha256: str
    text: str
    samples: Count
    length: Count
    mask: str | None
    draws: Count
    rows: Count
    weigh: str
    seed: Annotated[int, Field(ge=0, le=LARGEST_SEED)]
    distinct: Annotated[int, Field(ge=0)]
    drawn: Annotated[int, Field(ge=0)]


class ModuleRecord(_Record):
    """One module of the model as it was compiled.

    row, gemm: kernels as in the catalogue, None where kept. transform: the module whose tensors hold the input's.
    merged: the first module of those that are computed as one GEMM; each has its own tensors. tokens: of an expert's
    module, the calibration tokens that were routed to it, where statistics of them were taken.
    """

    role: str
    module: str
    scheme: str | None
    label: str
    bits: Bits
    in_features: Count
    out_features: Count
    bias: bool
    rule: str | None
    passes: tuple[str, ...]
    row: dict[str, Any] | None = None
    gemm: dict[str, Any] | None = None
    transform: str | None = None
    merged: str | None = None
    sqnr_db: float | None = None
    weight_sqnr_db: float | None = None
    tokens: Annotated[int | None, Field(ge=0)] = None

    @model_serializer(mode="wrap")
    def _as_data(self, whole: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without `tokens` where there are none."""
        data: dict[str, Any] = whole(self)
        if self.tokens is None:
            data.pop("tokens", None)
        return data

    @property
    def kernels(self) -> LayerKernels | None:
        """The catalogue's value."""
        if self.gemm is None:
            return None
        own = self.row
        row = None if own is None else ActivationKernel(**own | {"rotations": tuple(own["rotations"])})
        return LayerKernels(row, GemmKernel(**self.gemm))

    @property
    def input(self) -> tuple[Any, ...]:
        """What modules of one input have in common, where one's tensors hold its transform: they may be quantized to
        other bits behind it."""
        return None if self.row is None else self.row["rotations"], self.in_features, self.transform

    @property
    def joined(self) -> tuple[Any, ...]:
        """What the modules of one GEMM have in common."""
        return *self.input, self.row, self.gemm, self.bias

    @model_validator(mode="after")
    def _is_possible(self) -> Self:
        """A role, and kernels of the catalogue that take so many channels."""
        if not _ROLE.fullmatch(self.role):
            raise ValueError(f"{self.role[:80]!r} is no role")
        try:
            kernels = self.kernels
        except (TypeError, KeyError, InputError) as error:
            raise ValueError(f"not a kernel of the catalogue: {error}") from None
        if kernels is None and (self.row, self.transform, self.merged) != (None, None, None):
            raise ValueError("a module that is kept has neither kernels nor a transform")
        if kernels is not None:
            try:
                kernels.check(self.in_features)
            except InputError as error:
                raise ValueError(error.what) from None
        return self


def _alike(record: ModuleRecord, other: ModuleRecord | None, what: Literal["input", "joined"]) -> bool:
    """Whether a module can share its input, or a GEMM, with another one of its block."""
    block = record.role.partition(".")[0]
    return other is not None and block == other.role.partition(".")[0] and getattr(record, what) == getattr(other, what)


def _gates(records: list[ModuleRecord]) -> bool:
    """Whether the modules of a GEMM are gate and up."""
    return [record.role.rpartition(".")[2] for record in records] == ["gate", "up"]


class KernelRecord(_Record):
    name: str
    file: FileName
    sha256: str


class Manifest(_Record):
    """qspec.json.

    packing: the format of its packed weights (`catalog.PACKING`). bits_per_weight: of the blocks;
    bits_per_weight_model: with embedding and head. files: sha256 of every file of the artifact but this one and the
    report's own seal.
    """

    format: Literal[7]
    packing: Count
    qspec: str
    name: str
    recipe: str
    model: ModelRecord
    calibration: CalibrationRecord
    modules: tuple[ModuleRecord, ...]
    kernels: tuple[KernelRecord, ...]
    bits_per_weight: Bits
    bits_per_weight_model: Bits
    bytes_before: Bytes
    bytes_after: Bytes
    files: dict[FileName, str]
    digest: str = ""

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> Self:
        """Modules and kernels stand once; what one names of another is there, and fits it."""
        modules = {record.module: record for record in self.modules}
        for what, names in (
            ("role", [record.role for record in self.modules]),
            ("module", [record.module for record in self.modules]),
            ("kernel", [record.name for record in self.kernels]),
        ):
            if len(set(names)) < len(names):
                raise ValueError(f"a {what} stands twice")
        gemms: dict[str, list[ModuleRecord]] = {}
        for record in self.modules:
            if record.transform is not None and not _alike(record, modules.get(record.transform), "input"):
                raise ValueError(f"{record.role} has the transform of a module with another input")
            if record.merged is not None:
                gemms.setdefault(record.merged, []).append(record)
        for first, records in gemms.items():
            if not all(_alike(record, modules.get(first), "joined") for record in records):
                raise ValueError(f"{records[0].role} is part of a GEMM with modules of other kernels")
            rotated = records[0].row is not None and records[0].row["rotations"]
            if rotated and records[0].transform is None:
                raise ValueError(f"{records[0].role} is part of a GEMM, and has a transform of its own")
        gated = {id(record) for records in gemms.values() if _gates(records) for record in records}
        for record in self.modules:
            if record.gemm and record.gemm.get("gated") and id(record) not in gated:
                raise ValueError(f"{record.role} is gated, and no GEMM of gate and up")
        return self

    @property
    def shards(self) -> tuple[str, ...]:
        """The files that hold tensors."""
        return tuple(sorted(name for name in self.files if name.endswith(".safetensors")))

    def require_packing(self, folder: Path) -> None:
        """Raises InputError where the weights are packed as this version does not read them."""
        if self.packing != PACKING:
            raise InputError(
                f"the weights are packed in format {self.packing}, and qspec {__version__} reads format {PACKING}",
                where=str(folder / MANIFEST),
                hint=f"compile the recipe again, or load it with qspec {self.qspec}",
            )

    def sealed(self) -> Manifest:
        """The manifest with the hash of its own content."""
        return self.model_copy(update={"digest": self._own_digest()})

    def text(self) -> str:
        """The one spelling of a manifest: qspec.json holds exactly this."""
        return self.model_dump_json(indent=1) + "\n"

    def _own_digest(self) -> str:
        content = self.model_dump(mode="json", exclude={"digest"})
        return content_digest(content)

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Raises InputError where qspec.json is absent, is not a manifest or was changed."""
        refuse_file(folder)
        path = folder / MANIFEST
        try:
            with read_errors(path):
                raw = read_input(path, MAX_MANIFEST_BYTES)
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
            raise changed(path)
        return manifest


def refuse_file(path: Path) -> None:
    """Raises InputError where there is a file in place of an artifact: a recipe, or one of the artifact's own."""
    if path.is_file():
        recipe = path.suffix == ".qs"
        raise InputError(
            "this is a file; a compiled model is a folder",
            where=str(path),
            hint=f"compile it first: qspec compile {path}" if recipe else "give the folder that holds qspec.json",
        )


def content_digest(content: Mapping[str, Any]) -> str:
    """The hash that seals JSON values: of their one spelling with sorted keys."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def changed(path: Path) -> InputError:
    """The error for a file of an artifact that does not have the hash in its manifest."""
    return InputError(
        "a file of the artifact was changed after it was written: its sha256 does not match",
        where=str(path),
        hint="restore the file, or remove the folder and compile the recipe again",
    )


def kernel_fields(kernel: ActivationKernel | GemmKernel | None) -> dict[str, Any] | None:
    """A kernel as the manifest stores it: JSON's own values."""
    if kernel is None:
        return None
    return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(kernel).items()}
