"""Both grids of symmetric codes, s = max / qmax and s = max / (qmax + 1/2), side by side.

    python examples/grids/measure.py layers --device cuda --jobs 16
    python examples/grids/measure.py recipes --device cuda --jobs 16

`layers`: every linear of a model in one format; the mean relative error of their outputs, and KL(quantized ||
unquantized) at masked positions of held-out text. `recipes`: every shipped recipe, compiled and measured with the table
of formats as it was and as it is. OUT gets NAME.json and NAME.md.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import re
import shutil
import statistics
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import qspec
from qspec import formats, numerics, passes, resources, runtime
from qspec.calibrate.rows import calibration_rows
from qspec.calibrate.stream import Stream
from qspec.calibrate.tokens import CalibrationTokens
from qspec.compiler import CompileOptions
from qspec.data import DataSources
from qspec.evaluate.nelbo import NelboResult, measure_nelbo
from qspec.files import write_whole
from qspec.formats import (
    NUMBER_FORMATS,
    Clip,
    Granularity,
    NumberFormat,
    Scheme,
    TensorFormat,
    half_a_step_more,
)
from qspec.language import load_recipe
from qspec.language.spec import Calibration, NamedText, NelboRequest
from qspec.models.checkpoint import Checkpoint
from qspec.models.decoder import Decoder
from qspec.models.registry import FAMILIES
from qspec.passes.block import Block
from qspec.passes.gptq import Gptq, prepare, round_columns
from qspec.passes.rtn import Rtn

MODELS = ("tiny-llada", "tiny-dream")
RANDOM = "random outliers"
GRIDS = ("qmax", "half")  # max|x| / s
BITS = (2, 3, 4, 5, 6, 7, 8)
TEXT = NamedText("wikitext2")


@dataclass(frozen=True)
class Cell:
    """operand: "weights" or "activations" (beside int8 weights). method: of the weights. group: None is a whole row."""

    model: str
    operand: str
    method: str
    bits: int
    group: int | None
    clip: str


@dataclass(frozen=True)
class Job:
    """A cell of one grid, or a recipe (name and model) with one table of formats.

    clip, seed: of a recipe, in place of `clip mse` and of its own seed of the calibration.
    """

    cell: Cell | tuple[str, str]
    grid: str
    device: str
    samples: int
    clip: str = "mse"
    seed: int = 0


def on_grid(number: NumberFormat, grid: str) -> NumberFormat:
    """The format as it would be: integers up to qmax, or half a step beyond; mxfp4 up to 8 s (OCP MX), or 7 s."""
    if number.name == "mxfp4":
        return replace(number, reach=8 if grid == "qmax" else 7)
    if number.kind != "int":
        return number
    return replace(number, reach=half_a_step_more(number.qmax) if grid == "half" else number.qmax)


def scheme(cell: Cell, grid: str) -> Scheme:
    clip = Clip("mse") if cell.clip == "mse" else Clip()

    def operand(bits: int, whole: str, clip: Clip) -> TensorFormat:
        number = on_grid(NUMBER_FORMATS[f"int{bits}"], grid)
        granularity = Granularity("group", cell.group) if cell.group else Granularity("token" if whole else "channel")
        return TensorFormat(number, granularity, True, clip)

    if cell.operand == "weights":
        return Scheme("cell", operand(cell.bits, "", clip))
    weights = TensorFormat(NUMBER_FORMATS["int8"], Granularity("channel"))
    return Scheme("cell", weights, operand(cell.bits, "token", Clip()))


def cells(models: Sequence[str], bits: Sequence[int]) -> list[Cell]:
    found = []
    for model in (*models, RANDOM):
        for method in ("rtn", "gptq"):
            for group in (None, 128):
                found += [Cell(model, "weights", method, b, group, "none") for b in bits]
                found += [Cell(model, "weights", method, b, group, "mse") for b in bits if b <= 4]
        found += [Cell(model, "activations", "rtn", b, group, "none") for b in bits for group in (None, 128)]
    return found


@lru_cache(maxsize=2)
def unquantized(
    model: str, device: str, samples: int
) -> tuple[Checkpoint, Decoder, Any, DataSources, CalibrationTokens]:
    """The checkpoint, its model and tokenizer, its texts, and masked calibration rows of them."""
    folder = resources.standins() / model if model in MODELS else Path(model)
    checkpoint = Checkpoint.open(folder)
    baseline, tokenizer = runtime.load(folder, device)
    sources = DataSources(folder, folder)
    wanted = Calibration(text=TEXT, samples=samples, length=min(256, checkpoint.shape.max_length))
    documents = sources.calibration(TEXT).documents
    tokens = calibration_rows(documents, tokenizer, wanted, checkpoint.shape, lambda: baseline)
    return checkpoint, baseline, tokenizer, sources, tokens


def of_model(cell: Cell, grid: str, device: str, samples: int) -> dict[str, float]:
    """error: mean over the linears of ||y - y^|| / ||y|| on one calibration batch. kl, nelbo: of the whole model."""
    checkpoint, baseline, tokenizer, sources, tokens = unquantized(cell.model, device, samples)
    target = runtime.find_device(device)
    model = checkpoint.load(target, runtime.default_dtype(target))
    entries = {e.role: e for e in checkpoint.family.modules(checkpoint.shape)}
    stream = Stream.start(model, tokens, 16, target)
    errors: list[float] = []
    for index, module in enumerate(model.blocks):
        own = {role.part: (e, scheme(cell, grid)) for role, e in entries.items() if role.block == index}
        block = Block(index, checkpoint.shape, module, own, stream, 0)
        uses = tuple(block.linears.values())
        block.fit_scales(uses)
        (Gptq() if cell.method == "gptq" else Rtn()).rewrite(block, uses)
        sites = block.sites()
        seen, _ = next(block.observed.inputs([site.name for site in sites]))
        for site in sites:
            x = seen[site.name].float()
            errors += [
                relative(x @ linear.weight.T, linear.rounded_input(x) @ linear.rounded_weight().T)
                for linear in site.linears
            ]
        stream.advance(module)
    found = measured(baseline, runtime.know_tokens(model, tokenizer), tokenizer, sources, samples)
    return {"error": sum(errors) / len(errors), **figures(found)}


def of_random_layer(cell: Cell, grid: str) -> dict[str, float]:
    """W Gaussian [128, 512]; X Gaussian [512, 512] with eight channels 30 times as large."""
    generator = torch.Generator().manual_seed(0)
    w, x = torch.randn(128, 512, generator=generator) * 0.02, torch.randn(512, 512, generator=generator)
    x[:, torch.randperm(512, generator=generator)[:8]] *= 30
    chosen = scheme(cell, grid)
    if cell.method == "rtn":
        rounded = numerics.quantize_weight(w, chosen.weights).dequantize()
    else:
        elimination = prepare(2 * x.T @ x / len(x), "activation", 0.01, RANDOM)
        scale, zero = numerics.weight_scales(w, chosen.weights)
        codes = round_columns(w, scale, zero, chosen.weights, elimination, 128)
        rounded = numerics.dequantize(codes, scale, zero, chosen.weights.number)
    rows = x if chosen.activations is None else numerics.quantize_activations(x, chosen.activations).dequantize()
    return {"error": relative(x @ w.T, rows @ rounded.T)}


def relative(exact: Tensor, rounded: Tensor) -> float:
    return float((exact.double() - rounded.double()).norm() / exact.double().norm())


def measured(baseline: Decoder, model: Decoder, tokenizer: Any, sources: DataSources, samples: int) -> NelboResult:
    return measure_nelbo(baseline, model, tokenizer, sources.heldout(TEXT), NelboRequest(TEXT, samples), 0)


def figures(found: NelboResult) -> dict[str, float]:
    positions = sum(bucket.positions for bucket in found.kl)
    kl = sum(bucket.kl * bucket.positions for bucket in found.kl) / positions
    return {"kl": kl, "nelbo": found.metric.quantized, "unquantized": found.metric.baseline}


def of_recipe(name: str, model: str, job: Job) -> dict[str, float]:
    """The artifact's figures. The table of formats is this process's own: each recipe has a process to itself."""
    device, samples = job.device, job.samples
    for one in list(NUMBER_FORMATS):
        if job.grid == "qmax" or one == "mxfp4":
            formats.NUMBER_FORMATS[one] = on_grid(NUMBER_FORMATS[one], job.grid)
    with tempfile.TemporaryDirectory() as folder:
        home = Path(shutil.copytree(resources.recipes(), Path(folder) / "recipes"))
        for path in home.rglob("*.qs"):
            text = path.read_text().replace("clip mse", f"clip {job.clip}")
            path.write_text(re.sub(r"^((?: *|param )seed *=? +)0$", rf"\g<1>{job.seed}", text, flags=re.MULTILINE))
        artifact = qspec.compile(
            home / name, model, Path(folder) / "artifact", device, options=CompileOptions(evaluate=False)
        )
        quantized, tokenizer = runtime.load(artifact.path, device)
        standin = resources.standins() / model if model in MODELS else Path(model)
        baseline, _ = runtime.load(standin, device)
        return figures(measured(baseline, quantized, tokenizer, DataSources(standin, standin), samples))


def recipes(models: Sequence[str]) -> list[tuple[str, str]]:
    """(recipe below recipes/, model) of everything that ships and takes the model's family."""
    home, found = resources.recipes(), []
    for path in sorted(home.rglob("*.qs")):
        if path.parent.name == "base":
            continue
        spec = load_recipe(path, passes.available(), {}, FAMILIES).spec
        for model in models:
            folder = resources.standins() / model if model in MODELS else Path(model)
            if Checkpoint.open(folder).family.name in spec.families:
                found.append((str(path.relative_to(home)), model))
    return found


def run(job: Job) -> dict[str, Any]:
    torch.set_num_threads(1)
    if isinstance(job.cell, tuple):
        name, model = job.cell
        where: dict[str, Any] = {"recipe": name, "model": model, "seed": job.seed}
        found = of_recipe(name, model, job)
    else:
        where = asdict(job.cell)
        if job.cell.model == RANDOM:
            found = of_random_layer(job.cell, job.grid)
        else:
            found = of_model(job.cell, job.grid, job.device, job.samples)
    print(*where.values(), job.grid, *(f"{key} {value:.4f}" for key, value in found.items()), flush=True)
    return {**where, "grid": job.grid, **found}


def everything(jobs: Sequence[Job], processes: int) -> list[dict[str, Any]]:
    """In order. A recipe changes its process, so that each gets a new one; cells share theirs."""
    if processes == 1 and not isinstance(jobs[0].cell, tuple):
        return [run(job) for job in jobs]
    alone = 1 if isinstance(jobs[0].cell, tuple) else None
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context, max_tasks_per_child=alone) as pool:
        return list(pool.map(run, jobs))


def table(rows: Sequence[dict[str, Any]], what: Sequence[str], shown: Sequence[str]) -> str:
    """Markdown: a line for each cell, both grids' figures, and what the first is of the second; seeds are averaged."""

    def key(row: dict[str, Any]) -> tuple[Any, ...]:
        return tuple(row[name] for name in what)

    pairs: dict[tuple[Any, ...], dict[str, list[dict[str, Any]]]] = {}
    for row in rows:
        pairs.setdefault(key(row), {}).setdefault(row["grid"], []).append(row)
    headings = [*what, *(f"{name}, {text}" for name in shown for text in ("max / qmax", "half a step more", "ratio"))]
    lines = ["| " + " | ".join(headings) + " |", "|---" * len(headings) + "|"]
    for cell, both in pairs.items():
        values = []
        for name in shown:
            old, new = (statistics.fmean(row.get(name, math.nan) for row in both[grid]) for grid in GRIDS)
            values += ["" if math.isnan(v) else f"{v:.4f}" for v in (old, new)]
            values.append("" if math.isnan(old) else f"{old / new:.3f}")
        lines.append("| " + " | ".join(["row" if v is None else str(v) for v in cell] + values) + " |")
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None, say: Callable[[str], None] = print) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("layers", "recipes"))
    parser.add_argument("--model", action="append", help="stand-in or checkpoint folder; may be repeated")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--jobs", type=int, default=1, help="processes (default: 1)")
    parser.add_argument(
        "--samples",
        type=int,
        default=32,
        help="windows of held-out text, and of calibration text for layers (default: 32)",
    )
    parser.add_argument("--bits", default=",".join(map(str, BITS)), help="of layers, separated by commas")
    parser.add_argument("--only", default="", help="recipes in whose name this regular expression is found")
    parser.add_argument("--seeds", type=int, default=1, help="of recipes, each a compile of its own (default: 1)")
    parser.add_argument("--clip", default="mse", help="what recipes have in place of `clip mse`")
    parser.add_argument("--out", type=Path, default=Path("build/grids"))
    args = parser.parse_args(arguments)

    models = args.model or MODELS
    if args.what == "layers":
        chosen: Sequence[Cell | tuple[str, str]] = cells(models, [int(b) for b in args.bits.split(",")])
        columns, shown = ["model", "operand", "method", "bits", "group", "clip"], ["error", "kl"]
    else:
        chosen = [(name, model) for name, model in recipes(models) if re.search(args.only, name)]
        columns, shown = ["recipe", "model"], ["nelbo", "kl"]
    seeds = range(args.seeds if args.what == "recipes" else 1)
    jobs = [
        Job(cell, grid, args.device, args.samples, args.clip, seed)
        for cell in chosen
        for grid in GRIDS
        for seed in seeds
    ]
    rows = everything(jobs, args.jobs)
    text = table(rows, columns, shown)
    args.out.mkdir(parents=True, exist_ok=True)
    write_whole(args.out / f"{args.what}.json", json.dumps(rows, indent=1) + "\n")
    write_whole(args.out / f"{args.what}.md", text)
    say(text)


if __name__ == "__main__":
    main()
