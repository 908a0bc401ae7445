"""The compiler: one function, each stage a named call.

recipe.qs --parse, resolve--> Spec --(+ config.json)--> Plan --calibrate, passes, pack--> artifact --measure--> report
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from qspec import passes
from qspec.artifact import verify
from qspec.calibrate.rows import calibration_rows
from qspec.calibrate.tokens import CalibrationTokens, repetition
from qspec.card import model_card
from qspec.data import DataPin, DataSources
from qspec.errors import InputError, MachineError
from qspec.evaluate import Measuring
from qspec.evaluate.requests import check_requests, tell_effort
from qspec.language import load_recipe
from qspec.language.spec import Evaluation, Rollouts, Spec
from qspec.lock import Lock, differences, lock_path
from qspec.machine import machine_facts
from qspec.manifest import CalibrationRecord, Manifest, ModelRecord
from qspec.models.checkpoint import Checkpoint
from qspec.models.decoder import Decoder
from qspec.models.registry import FAMILIES
from qspec.models.tokenizer import tokenizer_contents
from qspec.models.tokens import know_tokens
from qspec.origin import Origin, find_checkpoint
from qspec.plan import Plan, make_plan
from qspec.precision import exact_products
from qspec.progress import Progress, Quiet
from qspec.quantize import quantize_blocks
from qspec.report import ReportData, has_full_report
from qspec.report.make import make_report
from qspec.runtime import ChatTemplate, default_dtype, find_device, load_tokenizer
from qspec.version import __version__
from qspec.workspace import Workspace, require_place

GENERATION = "generation_config.json"


@dataclass(frozen=True)
class Artifact:
    """A compiled model on disk. report: the report's data, None where evaluation was left out."""

    path: Path
    manifest: Manifest
    plan: Plan
    report: ReportData | None


@dataclass(frozen=True)
class CompileOptions:
    """locked: refuse other inputs than NAME.lock says; "strict", another machine too. evaluate: measure the result, on
    data that must be there. download: fetch a checkpoint and data that are not here. standin: where the checkpoint is
    not here, take the bundled one of its family; never if locked. run_code: score what runs programs of the model.
    limit: measure at most so many items of a task and samples of a text. reference: measure the same schemes only
    rounded, too.
    """

    locked: bool | Literal["strict"] = False
    evaluate: bool = True
    run_code: bool = False
    download: bool = False
    standin: bool = True
    limit: int | None = None
    reference: bool = True


def compile(  # the public name: qspec.compile
    recipe: str | Path,
    model: str | None = None,
    out: str | Path | None = None,
    device: str = "auto",
    *,
    settings: Mapping[str, str] | None = None,
    options: CompileOptions = CompileOptions(),
    progress: Quiet | None = None,
) -> Artifact:
    """Compiles a recipe into an artifact with its report; what `qspec compile` does.

    model: checkpoint folder or hub id instead of the recipe's. out: default build/<recipe>/. settings: values of the
    recipe's parameters. Raises RecipeError for a recipe with errors; InputError, MachineError or NumericsError where
    an input or the machine failed. Killed or failed, the same call goes on after the last finished block; the artifact
    is put in place before it is measured, and measured by the same call where that was interrupted.
    """
    progress = progress or Quiet()
    lock = Lock.read(lock_path(Path(recipe))) if options.locked else None
    spec = read_recipe(recipe, settings)  # its mistakes first: they cost nothing to find
    place = Path(out) if out else Path("build") / spec.name
    require_place(place)
    inputs = find_inputs(spec, model, device, options=options, progress=progress)
    if lock:
        wanted = lock if options.evaluate else lock.compiled
        for told in wanted.require(inputs.lock, lock_path(inputs.recipe), strict=options.locked == "strict"):
            progress.note(told)
    manifest = _unmeasured(place, inputs) if options.evaluate else None
    if manifest is None:
        manifest = _quantize(place, inputs, progress)
    else:
        progress.note(f"{place} was compiled from these inputs and not measured yet: nothing is quantized again")
    report = None
    if options.evaluate:
        report = _measure(place, inputs, options, progress)
    return Artifact(place, manifest, inputs.plan, report)


def _unmeasured(place: Path, inputs: Inputs) -> Manifest | None:
    """The manifest of the artifact there, if it is of these inputs and lacks a full report; else it is made anew."""
    lock = place / "recipe.lock"
    if has_full_report(place) or not lock.is_file() or lock.read_text(encoding="utf-8") != inputs.lock.compiled.text():
        return None
    try:
        manifest = verify(place)
    except InputError:
        return None
    same = (manifest.qspec, manifest.recipe, manifest.calibration.tokens_sha256)
    return manifest if same == (__version__, inputs.spec.text, inputs.tokens.sha256) else None


def _quantize(place: Path, inputs: Inputs, progress: Progress) -> Manifest:
    """Makes the artifact, block by block, and puts it in place."""
    workspace = Workspace(place, inputs.facts)
    if workspace.thrown_away is not None:
        progress.note(_starts_over(workspace.thrown_away, inputs.facts))
    with _kept(workspace, progress):
        with progress.phase("quantize"):
            records = quantize_blocks(inputs.plan, inputs.checkpoint, inputs.tokens, workspace, inputs.device, progress)
        _write_beside(workspace, inputs)
        manifest = workspace.seal(inputs.plan, _model_record(inputs), _calibration_record(inputs), records)
        workspace.publish()
        return manifest


def _measure(place: Path, inputs: Inputs, options: CompileOptions, progress: Quiet) -> ReportData:
    """Measures the artifact; whatever ends that, the user hears that it is there and how to go on."""
    go_on = f"the artifact is in {place}; the same command goes on with its measurements"
    how = Measuring(options.limit, options.run_code, keep=True, reference=options.reference)
    try:
        return make_report(
            place, str(inputs.origin.folder), inputs.device.type, inputs.recipe.parent, progress, how=how
        )
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise MachineError("out of memory while measuring", where=str(place), hint=f"free memory; {go_on}") from error
    except MachineError as error:
        raise MachineError(error.what, where=error.where, hint=f"{error.hint or 'run it again'}; {go_on}") from error
    except KeyboardInterrupt:
        progress.note(go_on)
        raise


def _starts_over(before: Mapping[str, object], now: Mapping[str, object]) -> str:
    """Why nothing is taken over from an interrupted run."""
    if not before:
        return "the interrupted run's record is damaged: starting over"
    changes = "; ".join(differences(now, before, "before"))
    return f"starting over, not where the interrupted run stopped: {changes}"


@contextmanager
def _kept(workspace: Workspace, progress: Progress) -> Iterator[None]:
    """Around the long work: whatever ends it, the user hears what was kept and how to go on."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise MachineError(
            "out of memory",
            where=workspace.kept,
            hint="free memory, or lower `samples` or `length` in the calibrate block; then run the same command again",
        ) from error
    except MachineError as error:
        hint = f"{error.hint or 'run the same command again'}; {workspace.kept}"
        raise MachineError(error.what, where=error.where, hint=hint) from error
    except KeyboardInterrupt:
        progress.note(f"{workspace.kept}; the same command goes on")
        raise
    finally:
        workspace.close()


@dataclass(frozen=True)
class Inputs:
    """Everything that a compile depends on, found and checked before any long work."""

    spec: Spec
    device: torch.device
    origin: Origin
    checkpoint: Checkpoint
    plan: Plan
    sources: DataSources
    tokens: CalibrationTokens
    lock: Lock

    @property
    def recipe(self) -> Path:
        """Its file."""
        return Path(self.spec.source)

    @property
    def facts(self) -> dict[str, Any]:
        """Everything that the artifact's bytes depend on, as plain values."""
        recipe = hashlib.sha256(self.spec.text.encode()).hexdigest()
        return {**self.lock.compiled.content, "recipe": recipe, "tokens": self.tokens.sha256}


def read_recipe(recipe: str | Path, settings: Mapping[str, str] | None = None) -> Spec:
    """What a recipe means with these values of its parameters. Errors: RecipeError; InputError where it is absent."""
    return load_recipe(recipe, passes.available(), settings or {}, FAMILIES).spec


@exact_products()
def find_inputs(
    spec: Spec,
    model: str | None = None,
    device: str = "auto",
    *,
    options: CompileOptions = CompileOptions(),
    progress: Progress | None = None,
) -> Inputs:
    """The checkpoint, the plan and the calibration tokens of a recipe; errors as `compile`."""
    target = find_device(device)
    standin = options.standin and not options.locked
    origin = find_checkpoint(spec, model, download=options.download, standin=standin)
    if origin.notice:
        (progress or Quiet()).note(origin.notice)
    checkpoint = Checkpoint.open(origin.folder)
    plan = make_plan(spec, checkpoint.family, checkpoint.shape, standin=origin.standin)
    tokenizer = load_tokenizer(origin.folder)
    sources = _sources(spec, origin, options)
    wanted = spec.evaluate if options.evaluate else Evaluation()
    wanted = wanted if options.limit is None else wanted.limited(options.limit)
    data = sources.check(spec.calibrate, wanted)
    check_requests(wanted, sources, tokenizer, checkpoint.shape)
    tell_effort(plan, wanted, sources, tokenizer, target, progress or Quiet())
    tokens = _tokens(plan, checkpoint, origin, sources, tokenizer, target, progress or Quiet())
    if repeats := repetition(tokens.distinct, tokens.drawn):
        (progress or Quiet()).note(repeats)
    lock = _lock(spec, origin, data, target)
    return Inputs(spec, target, origin, checkpoint, plan, sources, tokens, lock)


def _tokens(
    plan: Plan,
    checkpoint: Checkpoint,
    origin: Origin,
    sources: DataSources,
    tokenizer: Any,
    device: torch.device,
    progress: Progress,
) -> CalibrationTokens:
    """The calibration tokens.

    Rollouts and certainties are made with the whole unquantized model, which is let go afterwards.
    """
    shape, wanted = checkpoint.shape, plan.calibrate
    if wanted != plan.spec.calibrate:
        sources.replacements.append(
            f"calibration length {plan.spec.calibrate.length}: {wanted.length}, the most that {origin.id} takes"
        )
        if wanted.text != plan.spec.calibrate.text:
            sources.replacements.append(f"calibration {plan.spec.calibrate.text}: {wanted.text}, which fit that length")
    documents = sources.calibration(wanted.source).documents

    def load() -> Decoder:
        return know_tokens(checkpoint.load(device, default_dtype(device)), tokenizer)

    if not wanted.runs_model:
        return calibration_rows(documents, tokenizer, wanted, shape, load)
    try:
        with progress.phase("calibrate"):
            return calibration_rows(documents, tokenizer, wanted, shape, load)
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise MachineError(
            "out of memory while the unquantized model made the calibration rows",
            hint="free memory, lower `length`, or calibrate on masked text without `certainty`",
        ) from error


def find_lock(spec: Spec, model: str | None, device: str, *, download: bool) -> Lock:
    """The lock of what a recipe names, hashed and not otherwise looked at. Errors: InputError for what is not here."""
    origin = find_checkpoint(spec, model, download=download, standin=False)
    sources = _sources(spec, origin, CompileOptions(download=download))
    return _lock(spec, origin, sources.check(spec.calibrate, spec.evaluate), find_device(device))


def _sources(spec: Spec, origin: Origin, options: CompileOptions) -> DataSources:
    """What answers the recipe's names of texts and tasks."""
    place, chat = Path(spec.source).parent, ChatTemplate(origin.folder)
    return DataSources(origin.folder, place, chat=chat, download=options.download, run_code=options.run_code)


def _lock(spec: Spec, origin: Origin, data: Sequence[DataPin], device: torch.device) -> Lock:
    return Lock.of(
        id=origin.id,
        revision=origin.revision,
        folder=origin.folder,
        seed=spec.calibrate.seed,
        data=data,
        machine=machine_facts(device),
    )


def _write_beside(workspace: Workspace, inputs: Inputs) -> None:
    """Config, tokenizer, recipe, lock and model card."""
    checkpoint = inputs.checkpoint
    workspace.write("config.json", json.dumps(artifact_config(checkpoint.config), indent=2, sort_keys=True) + "\n")
    for name, content in tokenizer_contents(checkpoint.folder).items():
        workspace.write(name, content)
    if (checkpoint.folder / GENERATION).is_file():
        workspace.write(GENERATION, (checkpoint.folder / GENERATION).read_bytes())
    workspace.write("recipe.qs", inputs.spec.text)
    workspace.write("recipe.lock", inputs.lock.compiled.text())
    workspace.write("README.md", model_card(inputs.spec, inputs.plan, inputs.origin, __version__))


def artifact_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """A checkpoint's config.json as the artifact has it: true of what lies beside it.

    `auto_map` names code that does not come along, and what is kept is stored in bfloat16 whatever it was before;
    transformers 5 calls that `dtype`, and would guess it from the first tensor.
    """
    kept = {key: value for key, value in config.items() if key not in ("auto_map", "torch_dtype", "dtype")}
    return kept | {"dtype": "bfloat16", "quantization_config": {"quant_method": "qspec", "manifest": "qspec.json"}}


def _calibration_record(inputs: Inputs) -> CalibrationRecord:
    wanted = inputs.spec.calibrate
    rows, length = inputs.tokens.ids.shape[0], inputs.plan.calibrate.length
    text = wanted.text
    if isinstance(text, Rollouts):
        text = replace(text, chat="on" if inputs.tokens.chat else "off")
    return CalibrationRecord(
        tokens_sha256=inputs.tokens.sha256,
        text=str(text),
        samples=wanted.samples,
        length=length,
        mask=None if wanted.mask is None else str(wanted.mask),
        draws=wanted.draws,
        rows=rows,
        weigh=str(wanted.weigh),
        seed=wanted.seed,
        distinct=inputs.tokens.distinct,
        drawn=inputs.tokens.drawn,
    )


def _model_record(inputs: Inputs) -> ModelRecord:
    origin = inputs.origin
    return ModelRecord(
        id=origin.id,
        revision=origin.revision,
        family=inputs.plan.family,
        standin=origin.standin,
        replacements=tuple(inputs.sources.replacements),
        files=inputs.lock.files,
    )
