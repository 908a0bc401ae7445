"""What `qspec eval` takes on a CUDA GPU: answers written and choices rated by its own functions, in its own batches.

Weights are random, as those of `bench.step`, and so are the tokens. Both models are loaded, the unquantized one first,
and batches are kept as they are there. Of a written answer few steps are timed: each takes as long as any other.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from qspec import passes
from qspec.bench.evaluation_data import EvaluationCell, EvaluationRun
from qspec.bench.generation_data import BF16
from qspec.bench.measure import need_gpu
from qspec.bench.step import DTYPE, quantized
from qspec.bench.step_data import MODELS
from qspec.effort import BATCH_TOKENS
from qspec.evaluate.kept import KeptBatches
from qspec.evaluate.likelihood import log_likelihoods, rate_tokens
from qspec.evaluate.tasks import denoise
from qspec.kernels import attention
from qspec.language import load_recipe
from qspec.language.presets import PRESETS
from qspec.models.decoder import Decoder
from qspec.models.engine import length_of
from qspec.models.registry import FAMILIES
from qspec.models.sampler import Denoiser, settings_for
from qspec.plan import make_plan
from qspec.plan.generating import TextSizes, generating_memory
from qspec.progress import Progress
from qspec.report.environment import environment

PASSES = 4  # timed of rated choices, at least
BLOCK_STEPS = 2  # timed of each block of a written answer
RUNS = 3  # of which the fastest counts: others compile kernels and capture steps


@dataclass(frozen=True)
class Shape:
    """prompt: tokens before an answer or choice. target: of a choice, 0 where an answer is written."""

    task: str
    prompt: int
    target: int = 0


SHAPES = (Shape("gsm8k", 900), Shape("hellaswag", 70, 30), Shape("piqa", 15, 20), Shape("mmlu", 600, 1))


def run_evaluation(
    recipes: Sequence[Path], models: Sequence[str], shapes: Sequence[Shape], progress: Progress
) -> EvaluationRun:
    """Times every model in bf16, and under every recipe with the former loaded. Raises MachineError, RecipeError."""
    need_gpu()
    cells: list[EvaluationCell] = []
    for model in models:
        family, shape = MODELS[model]
        plans = [make_plan(load_recipe(path, passes.available(), {}, FAMILIES).spec, family, shape) for path in recipes]
        plain = attention.install(Decoder(family, shape, device="cuda", dtype=DTYPE).requires_grad_(False))
        before = sum(weight.nbytes for weight in plain.parameters())
        progress.step(f"{model}  {BF16}")
        cells += _measure(plain, model, BF16, before, shapes)
        for plan in plans:
            progress.step(f"{model}  {plan.spec.name}")
            outside = before - plan.block_weights * DTYPE.itemsize  # here it is one model's
            cells += _measure(
                quantized(plan, plain), model, plan.spec.name, before + plan.bytes_after - outside, shapes
            )
    return EvaluationRun(environment(), tuple(cells))


def _measure(
    decoder: Decoder, model: str, recipe: str, weights: int, shapes: Sequence[Shape]
) -> Iterator[EvaluationCell]:
    for shape in shapes:
        preset = PRESETS[shape.task]
        rated = bool(shape.target)
        row = shape.prompt + (shape.target or preset.length)
        rows = max(1, BATCH_TOKENS // row)
        with TemporaryDirectory() as folder:
            kept = KeptBatches(Path(folder), "bench").of(decoder, "model")
            runs = [_timed(kept, shape, rows, seed) for seed in range(RUNS)]
        made, seconds, peak = min(runs, key=lambda run: run[1])
        canvas = row if rated else length_of(row)
        planned = generating_memory(decoder.shape, weights, TextSizes(rows, canvas)).total
        length, steps = (0, preset.draws if shape.target > 1 else 1) if rated else (preset.length, preset.steps)
        yield EvaluationCell(model, recipe, shape.task, rows, row, length, steps, made, seconds, peak, planned)


def _timed(model: Denoiser, shape: Shape, rows: int, seed: int) -> tuple[float, float, int]:
    """Passes, seconds and the peak of memory of one run."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    made = _rate(model, shape, rows, seed) if shape.target else _write(model, shape, rows, seed)
    torch.cuda.synchronize()
    return made, time.perf_counter() - start, torch.cuda.max_memory_allocated()


def _write(model: Denoiser, shape: Shape, rows: int, seed: int) -> int:
    """Answers to a batch of prompts, in few steps; how many."""
    preset = PRESETS[shape.task]
    steps = preset.length // preset.block * BLOCK_STEPS
    settings = settings_for(model.shape, preset.length, steps, preset.block)
    denoise(model, _random(model, rows, shape.prompt, seed), settings)
    return steps


def _rate(model: Denoiser, shape: Shape, rows: int, seed: int) -> float:
    """Rates choices for at least `PASSES` passes; how many full ones that is."""
    draws = PRESETS[shape.task].draws if shape.target > 1 else 1
    count = -(-PASSES * rows // draws)
    tokens = _random(model, count, shape.prompt + shape.target, seed)
    rated = [rate_tokens(one[: shape.prompt], one[shape.prompt :], draws, seed) for one in tokens]
    log_likelihoods(model, rated)
    return count * draws / rows


def _random(model: Denoiser, rows: int, length: int, seed: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    found: list[list[int]] = torch.randint(model.shape.mask_token, (rows, length), generator=generator).tolist()
    return found
