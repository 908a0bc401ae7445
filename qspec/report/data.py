"""What a report shows, as one value; report.json holds it whole, and `qspec report` renders it from there."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from qspec.calibrate.tokens import repetition
from qspec.data import DataPin
from qspec.errors import InputError
from qspec.evaluate.outliers import OutlierReport
from qspec.evaluate.results import Flips, GateResult, KlBucket, Measurements, Metric, Reference, Sample, Speed
from qspec.files import read_input
from qspec.manifest import CalibrationRecord, Manifest, ModuleRecord
from qspec.passes.parameters import FEW_TOKENS, few_tokens

FORMAT: Literal[3] = 3


@dataclass(frozen=True)
class ModelInfo:
    """replacements: one sentence for every name of the recipe that a stand-in's own data answered."""

    id: str
    family: str
    standin: bool
    revision: str = ""
    replacements: tuple[str, ...] = ()


@dataclass(frozen=True)
class RecipeInfo:
    name: str
    text: str


@dataclass(frozen=True)
class CalibrationInfo:
    """rows of length tokens; distinct: places of the text that they hold. repetition: what is wrong with it. few: of
    blocks with experts that too few tokens were routed to, what they were calibrated on."""

    text: str
    rows: int
    length: int
    distinct: int
    repetition: str | None
    few: tuple[str, ...] = ()


@dataclass(frozen=True)
class Bytes:
    """before: the whole model in 16 bits. after: the artifact's tensors."""

    before: int
    after: int


@dataclass(frozen=True)
class LayerRow:
    """One module as it was compiled.

    scheme: the recipe's name, None where the module is kept; label: W4A4 and the like. bits: stored bits a
    weight with scales. sqnr_db, weight_sqnr_db: of the output on calibration inputs and of the weight; None
    where nothing was rounded. kernel: the kernels that run it. rule: the statement that decided. passes:
    those that touched it, in order.
    """

    role: str
    module: str
    scheme: str | None
    label: str
    bits: float
    sqnr_db: float | None
    weight_sqnr_db: float | None
    kernel: str
    rule: str | None
    passes: tuple[str, ...]
    in_features: int
    out_features: int

    @classmethod
    def of(cls, record: ModuleRecord) -> LayerRow:
        return cls(
            role=record.role,
            module=record.module,
            scheme=record.scheme,
            label=record.label,
            bits=record.bits,
            sqnr_db=record.sqnr_db,
            weight_sqnr_db=record.weight_sqnr_db,
            kernel=" + ".join(kernel_names(record)) or "floating point",
            rule=record.rule,
            passes=record.passes,
            in_features=record.in_features,
            out_features=record.out_features,
        )


@dataclass(frozen=True)
class KernelInfo:
    """A generated kernel. layers: how many modules run it."""

    name: str
    file: str
    sha256: str
    layers: int


@dataclass(frozen=True)
class Compared:
    """Another recipe's result on the same checkpoint. manifest: its manifest's sha256, which tells artifacts apart."""

    name: str
    manifest: str
    bits_per_weight: float
    bits_per_weight_model: float
    metrics: tuple[Metric, ...]


@dataclass(frozen=True)
class ReportData:
    """Everything that a report shows.

    bits_per_weight: of the linears in the blocks; bits_per_weight_model: with embedding and head. execution: which
    path computed the quantized layers. environment, hashes: name -> text. timings: phase -> seconds. memory: name ->
    bytes. outliers: None, and metrics, kl, flips, samples empty, where nothing was measured. compared: what
    `qspec report --with` added. data: exactly which data was read. limit: the most items of a task and samples of a
    text, where the run was cut short. gates: what the recipe requires, judged. reference: what rounding alone does.
    speed: of denoising steps, by task.
    """

    model: ModelInfo
    recipe: RecipeInfo
    bits_per_weight: float
    bits_per_weight_model: float
    bytes: Bytes
    metrics: tuple[Metric, ...]
    layers: tuple[LayerRow, ...]
    outliers: OutlierReport | None
    kernels: tuple[KernelInfo, ...]
    execution: str
    environment: Mapping[str, str]
    timings: Mapping[str, float]
    kl: tuple[KlBucket, ...] = ()
    flips: tuple[Flips, ...] = ()
    samples: tuple[Sample, ...] = ()
    not_measured: tuple[str, ...] = ()
    seed: int = 0
    hashes: Mapping[str, str] = field(default_factory=dict)
    memory: Mapping[str, int] = field(default_factory=dict)
    compared: tuple[Compared, ...] = ()
    calibration: CalibrationInfo | None = None
    data: tuple[DataPin, ...] = ()
    limit: int | None = None
    gates: tuple[GateResult, ...] = ()
    reference: Reference | None = None
    speed: tuple[Speed, ...] = ()
    measured_at: str = ""
    format: Literal[3] = FORMAT

    def __str__(self) -> str:
        from qspec.report.text import summary

        return summary(self)

    def _repr_html_(self) -> str:
        """For notebooks."""
        from qspec.report.text import summary_html

        return summary_html(self)

    @property
    def passed(self) -> bool | None:
        """Whether every gate passed; None without gates."""
        return all(gate.passed for gate in self.gates) if self.gates else None

    @property
    def labels(self) -> dict[str, str]:
        """Task or text -> what people read, which names the stand-in's data where these answered."""
        return {metric.task: metric.label for metric in self.metrics}

    def as_json(self) -> dict[str, Any]:
        """Plain values; numbers that are not finite become null."""
        return {key: _finite(value) for key, value in asdict(self).items()}

    @classmethod
    def read(cls, path: Path) -> ReportData:
        """The data in a report.json. Errors: InputError where it is absent or of another shape."""
        return cls.of(cls.content(path), path)

    @staticmethod
    def content(path: Path) -> dict[str, Any]:
        """A JSON file's object, of any shape. Errors: InputError where it cannot be read or is none."""
        try:
            content = json.loads(read_input(path))
        except OSError as error:
            raise InputError(
                f"the report's data cannot be read: {error.strerror}",
                where=str(path),
                hint="measure it first: qspec eval ARTIFACT",
            ) from None
        except (ValueError, RecursionError) as error:
            raise _no_data(str(error), str(path)) from None
        if not isinstance(content, dict):
            raise _no_data("it is not an object", str(path))
        return content

    @classmethod
    def of(cls, content: Any, path: Path) -> ReportData:
        """The data in what report.json holds. path: where it is from. Errors: InputError where it has another shape."""
        if isinstance(content, dict):
            if content.get("format") in range(1, FORMAT):
                raise _no_data(f"an earlier qspec wrote it, in format {content['format']}", str(path))
            content = {key: value for key, value in content.items() if not key.startswith("verdict")}
        try:
            return TypeAdapter(cls).validate_python(content)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"])) or "top level"
            raise _no_data(first["msg"], f"{path} at {place}") from None


def _no_data(why: str, where: str) -> InputError:
    return InputError(f"not the data of a report: {why}", where=where, hint="measure it again: qspec eval ARTIFACT")


def report_data(
    manifest: Manifest,
    measurements: Measurements | None,
    outliers: OutlierReport | None,
    *,
    execution: str,
    environment: Mapping[str, str],
    timings: Mapping[str, float],
    memory: Mapping[str, int],
) -> ReportData:
    """The report of an artifact. timings: of the compile's phases; those of the measurements are added."""
    found = measurements or Measurements((), (), (), (), (), (), manifest.calibration.seed, {})
    model = manifest.model
    replacements = dict.fromkeys((*model.replacements, *found.replacements))
    return ReportData(
        model=ModelInfo(model.id, model.family, model.standin, model.revision, tuple(replacements)),
        recipe=RecipeInfo(manifest.name, manifest.recipe),
        bits_per_weight=manifest.bits_per_weight,
        bits_per_weight_model=manifest.bits_per_weight_model,
        bytes=Bytes(manifest.bytes_before, manifest.bytes_after),
        metrics=found.metrics,
        layers=tuple(LayerRow.of(record) for record in manifest.modules),
        outliers=outliers,
        kernels=_kernels(manifest),
        execution=execution,
        environment={**environment, **({"programs ran in": found.isolation} if found.isolation else {})},
        timings={**timings, **found.timings},
        kl=found.kl,
        flips=found.flips,
        samples=found.samples,
        limit=found.limit,
        gates=found.gates,
        reference=found.reference,
        speed=found.speed,
        not_measured=found.not_measured if measurements else ("nothing was measured: evaluation was left out",),
        seed=found.seed,
        hashes=_hashes(manifest, found.data),
        memory=dict(memory),
        calibration=_calibration(manifest.calibration, manifest.modules),
        data=found.data,
    )


def _calibration(record: CalibrationRecord, modules: Iterable[ModuleRecord]) -> CalibrationInfo:
    repeats = repetition(record.distinct, record.drawn)
    few: dict[str, dict[int, int]] = {}  # block -> expert -> tokens
    for module in modules:
        if module.tokens is not None and module.tokens < FEW_TOKENS:
            block, _, role = module.role.partition(".")
            few.setdefault(block, {})[int(role.partition("[")[2].partition("]")[0])] = module.tokens
    said = tuple(f"{block}: {few_tokens(own)}" for block, own in few.items())
    return CalibrationInfo(record.text, record.rows, record.length, record.distinct, repeats, said)


def kernel_names(record: ModuleRecord) -> list[str]:
    """The kernels that run a module, the activation quantization first; none where it is kept."""
    kernels = record.kernels
    if kernels is None:
        return []
    return [*([kernels.row.name] if kernels.row else []), kernels.gemm.name]


def _kernels(manifest: Manifest) -> tuple[KernelInfo, ...]:
    uses = Counter(name for record in manifest.modules for name in kernel_names(record))
    return tuple(KernelInfo(k.name, k.file, k.sha256, uses[k.name]) for k in manifest.kernels)


def _hashes(manifest: Manifest, data: Sequence[DataPin]) -> dict[str, str]:
    """What was compiled, on which data, and what came out of it, sha256 each."""
    pins = {f"data {pin.name} for {pin.use}{f' at {pin.revision}' if pin.revision else ''}": pin.sha256 for pin in data}
    originals = {f"checkpoint {name}": digest for name, digest in manifest.model.files.items()}
    return {
        "calibration tokens": manifest.calibration.tokens_sha256,
        "manifest": manifest.digest,
        **originals,
        **pins,
        **manifest.files,
    }


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return value
