"""Times of loading a model: `qspec.load` beside a plain read of the same files, and the first token behind it.

What a user waits for is timed in processes of their own, one with Triton's cache empty and one with it filled, and in
one that has imported the tokenizer's library. Where no artifact is given, one is made of a published model's
dimensions, with random codes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from qspec import passes, resources
from qspec.bench.loading_data import Loaded, Loading
from qspec.bench.step import DTYPE, WEIGHT, random_linear
from qspec.bench.step_data import MODELS, PUBLISHED
from qspec.errors import MachineError
from qspec.files import cores
from qspec.language import load_recipe
from qspec.manifest import CalibrationRecord, ModelRecord, ModuleRecord
from qspec.models.family import Family
from qspec.models.known import known_models
from qspec.models.registry import FAMILIES
from qspec.models.sampler import denoise, settings_for
from qspec.models.tokenizer import tokenizer_contents
from qspec.plan import Plan, make_plan
from qspec.progress import Progress
from qspec.quantize import assembled_block, outer_shards, record_of, shard_names
from qspec.report.environment import environment
from qspec.runtime import checkpoint_folder, find_device, load
from qspec.workspace import Workspace

RECIPE = "duquant_w4a4"  # of recipes/paper: the one with the most kernels
PROMPT, LENGTH, BLOCK = 128, 64, 32  # tokens of the text whose first step is timed
BUFFER = 16 << 20  # bytes of a plain read
IDS = ("mask_token_id", "eos_token_id", "pad_token_id")
LOADED = "from qspec.bench.loading import print_loaded; import sys; print_loaded(*sys.argv[1:])"
TOKENIZERS = "transformers.PreTrainedTokenizerFast"  # what `qspec.load` imports


def run_loading(artifact: str | None, model: str, out: Path, progress: Progress) -> Loading:
    """Times an artifact or checkpoint; without one an artifact of `model`'s dimensions, which is removed from `out`.

    Errors: InputError for what is no model, MachineError where a process that loads it fails.
    """
    if artifact is not None:
        return Loading(environment(), cores(), (_measure(artifact, checkpoint_folder(artifact), progress),))
    family, shape = MODELS[model]
    spec = load_recipe(resources.recipes() / "paper" / f"{RECIPE}.qs", passes.available(), {}, FAMILIES).spec
    out.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=out) as room:
        folder = Path(room) / model
        progress.step(f"{model}  writing an artifact")
        write_artifact(folder, make_plan(spec, family, shape), family, find_device("auto"))
        cell = _measure(f"{model}, {RECIPE}", folder, progress)
    return Loading(environment(), cores(), (cell,))


def write_artifact(folder: Path, plan: Plan, family: Family, device: torch.device) -> None:
    """An artifact of random codes, with the stand-in's tokenizer, whose special tokens take the model's place."""
    standin = resources.standin(family.name)
    ids = json.loads((standin / "config.json").read_text(encoding="utf-8"))
    config = dict(known_models()[PUBLISHED[family]]) | {name: ids[name] for name in IDS}
    workspace = Workspace(folder, {"recipe": plan.spec.text})
    shards = shard_names(plan.shape)
    records: dict[str, ModuleRecord] = {}
    for index, shard in enumerate(shards[: plan.shape.layers]):
        found, tensors = assembled_block(plan, index, partial(random_linear, device=device))
        for norm in family.norms_of(index):
            tensors[f"{family.module(norm)}.weight"] = torch.ones(family.norm_width(norm, plan.shape))
        workspace.write_shard(shard, tensors, found)
        records |= {record.role: record for record in found}
    outer = outer_shards(_outer_layers(plan, family, device), family)
    for shard, own in zip(shards[plan.shape.layers :], outer, strict=True):
        workspace.write_shard(shard, own)
    workspace.write_index(shards)
    for name, content in tokenizer_contents(standin).items():
        workspace.write(name, content)
    workspace.write("config.json", json.dumps(config))
    wanted = plan.spec.calibrate
    calibration = CalibrationRecord(
        tokens_sha256="", text="", samples=wanted.samples, length=wanted.length, mask=None, draws=wanted.draws,
        rows=wanted.samples, weigh=str(wanted.weigh), seed=wanted.seed, distinct=0, drawn=0,
    )  # fmt: skip
    model = ModelRecord(
        id=PUBLISHED[family], revision="random codes", family=family.name, standin=True, replacements=(), files={}
    )
    modules = [records.get(str(module.entry.role)) or record_of(plan, module) for module in plan.modules]
    workspace.seal(plan, model, calibration, modules)
    workspace.publish()


def _outer_layers(plan: Plan, family: Family, device: torch.device) -> dict[str, Tensor]:
    """Final norm, embedding and head."""
    shapes = {n: s for n, s in family.tensors(plan.shape).items() if not n.startswith(f"{family.blocks}.")}
    return {
        name: torch.ones(shape) if len(shape) == 1 else (WEIGHT * torch.randn(shape, device=device)).to(DTYPE)
        for name, shape in shapes.items()
    }


def _measure(name: str, folder: Path, progress: Progress) -> Loaded:
    files = sorted(folder.glob("*.safetensors"))
    plain_read(files)  # into the page cache
    progress.step(f"{name}  plain read")
    size, plain = plain_read(files)
    with TemporaryDirectory() as cache:
        progress.step(f"{name}  load, no kernel compiled")
        cold = _process(cache, str(folder))
        progress.step(f"{name}  load, kernels in Triton's cache")
        warm = _process(cache, str(folder))
        progress.step(f"{name}  load, libraries imported")
        imported = _process(cache, str(folder), TOKENIZERS)
    return Loaded(name, size, plain, imported["imports"], imported["load"], warm["load"], cold["first"], warm["first"])


def plain_read(files: Sequence[Path]) -> tuple[int, float]:
    """Bytes and seconds of reading files one after another into one buffer."""
    buffer, size, start = bytearray(BUFFER), 0, time.perf_counter()
    for file in files:
        with file.open("rb", buffering=0) as stream:
            while count := stream.readinto(buffer):
                size += count
    return size, time.perf_counter() - start


def _process(cache: str, folder: str, *imported: str) -> dict[str, float]:
    """What `print_loaded` prints in a new process; what that says on standard error is seen."""
    variables = {**os.environ, "TRITON_CACHE_DIR": cache}
    command = [sys.executable, "-c", LOADED, folder, *imported]
    done = subprocess.run(command, env=variables, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise MachineError(f"the process that loads the model ended with {done.returncode}", where=folder)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def print_loaded(folder: str, imported: str = "") -> None:
    """Loads a model and makes the first step of a text; prints the seconds as JSON.

    imported: what is imported first, package.name.
    """
    device = find_device("auto")
    torch.empty(1, device=device)  # begins a GPU's context
    start = time.perf_counter()
    package, _, name = imported.rpartition(".")
    if imported:
        getattr(import_module(package), name)
    ready = time.perf_counter()
    model, _ = load(folder)
    loaded = _now()
    prompt = torch.full((1, PROMPT), model.shape.eos_token)
    next(denoise(model, prompt, None, settings_for(model.shape, LENGTH, block=BLOCK)))
    print(json.dumps({"imports": ready - start, "load": loaded - ready, "first": _now() - loaded}))


def _now() -> float:
    """When the GPU has done its work."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()
