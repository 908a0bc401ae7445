"""Measures an artifact again: finds the checkpoint that it was compiled from, loads both, and runs its own recipe."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from qspec import passes, resources, runtime
from qspec.artifact import MEASURED
from qspec.data import DataSources
from qspec.diagnostics import Source
from qspec.effort import measured_at_once
from qspec.errors import InputError
from qspec.evaluate.kept import KeptBatches
from qspec.evaluate.measure import measure, measure_outliers
from qspec.evaluate.outliers import OutlierReport
from qspec.evaluate.reference import with_reference
from qspec.evaluate.remembered import Remembered
from qspec.evaluate.requests import check_requests, tell_effort
from qspec.evaluate.results import Measurements
from qspec.language import load_source
from qspec.lock import checkpoint_hashes, package_versions
from qspec.manifest import Manifest, ModelRecord
from qspec.models import engine
from qspec.models.locate import checkpoint_locate
from qspec.models.samplers.common import Denoiser
from qspec.plan import make_plan
from qspec.precision import exact_products
from qspec.progress import Progress, Quiet


@dataclass(frozen=True)
class Measuring:
    """How an evaluation goes. limit: at most so many items of every task and samples of every text. run_code: tasks
    are measured whose score runs programs that the models wrote. download: fetch data that are not here. keep: the
    results of batches are kept in the artifact's folder, for the same evaluation where this one is killed. reference:
    measure the NELBO of the same schemes rounded to nearest too."""

    limit: int | None = None
    run_code: bool = False
    download: bool = False
    keep: bool = False
    reference: bool = True


EVERYTHING = Measuring()


@dataclass(frozen=True)
class Evaluated:
    """execution: how quantized layers and denoising steps were computed. seconds: of the whole evaluation."""

    manifest: Manifest
    measurements: Measurements
    outliers: OutlierReport
    execution: str
    seconds: float


@exact_products()
def evaluate_artifact(
    folder: Path,
    model: str | None = None,
    device: str = "auto",
    files: Path | None = None,
    progress: Progress | None = None,
    baseline: Remembered | None = None,
    how: Measuring = EVERYTHING,
) -> Evaluated:
    """Everything that the artifact's recipe asks for, measured anew with the seed that it was compiled with.

    model: the unquantized checkpoint. files: where the recipe's relative paths start; None is the current
    folder. baseline: that checkpoint's model, where it is loaded already. Errors: InputError for a changed artifact, a
    checkpoint that is not here or another one, and missing data.
    """
    start, progress = time.perf_counter(), progress or Quiet()
    manifest = Manifest.read(folder)
    spec = load_source(Source(str(folder / "recipe.qs"), manifest.recipe), passes.available()).spec
    original = find_baseline(manifest.model, model)
    place, chat = files or Path(), runtime.ChatTemplate(original)
    sources = DataSources(original, place, chat=chat, download=how.download, run_code=how.run_code)
    wanted = spec.evaluate if how.limit is None else spec.evaluate.limited(how.limit)
    data = sources.check(spec.calibrate, wanted)
    with progress.phase("load"):
        quantized, tokenizer = runtime.load(folder, device)
        check_requests(wanted, sources, tokenizer, quantized.shape)
        plan = make_plan(spec, quantized.family, quantized.shape, standin=manifest.model.standin)
        tell_effort(plan, wanted, sources, tokenizer, quantized.device, progress)
        baseline = baseline or Remembered(runtime.load(original, device, texts=measured_at_once(quantized.shape))[0])
    with progress.phase("evaluate"):
        seed = manifest.calibration.seed
        unquantized = baseline if baseline.limit else baseline.model
        execution = runtime.execution(quantized.device)
        models: tuple[Denoiser, Denoiser] = (unquantized, quantized)
        if how.keep:
            batches = KeptBatches(folder / MEASURED, batch_owner(manifest, execution))
            models = (batches.of(unquantized, "unquantized"), batches.of(quantized, "quantized"))
        measurements = measure(*models, tokenizer, wanted, sources, seed, progress)
        outliers = measure_outliers(baseline.model, quantized, tokenizer, spec.calibrate, sources)
        if how.reference:
            measurements = with_reference(measurements, plan, baseline.model, tokenizer, wanted, sources, progress)
    execution += f"; denoising steps: {engine.execution(quantized)}"
    measurements = replace(measurements, data=tuple(data), limit=how.limit)
    return Evaluated(manifest, measurements, outliers, execution, time.perf_counter() - start)


def batch_owner(manifest: Manifest, execution: str) -> str:
    """All that the result of a batch depends on but the batch: both models, by the manifest, and what computes them."""
    versions = ", ".join(f"{name} {version}" for name, version in package_versions().items())
    return f"{manifest.digest} {execution} {versions} {torch.get_num_threads()} threads"


def find_baseline(record: ModelRecord, model: str | None) -> Path:
    """The folder of the checkpoint that was compiled; its files must have the hashes in the manifest."""
    folder = _located(record, model)
    if folder is None:
        raise InputError(
            f"the unquantized model {model or record.id} is not on this machine",
            hint="give it: qspec eval ARTIFACT --model FOLDER",
        )
    hashes = checkpoint_hashes(folder)
    for name, digest in record.files.items():
        if hashes.get(name) != digest:
            raise InputError(
                f"this is not the checkpoint that the artifact was compiled from: {name} is "
                + ("another file" if name in hashes else "missing"),
                where=str(folder),
                hint="give the original: qspec eval ARTIFACT --model FOLDER",
            )
    return folder


def _located(record: ModelRecord, model: str | None) -> Path | None:
    if model is not None:
        return checkpoint_locate(model)
    bundled = resources.standin(record.family)
    if record.standin and bundled.name == record.id:
        return bundled if bundled.is_dir() else None
    if Path(record.id).is_absolute() and not Path(record.id).is_dir():
        return None
    return checkpoint_locate(record.id, record.revision)
