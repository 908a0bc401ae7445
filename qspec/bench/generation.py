"""Times of whole texts on a CUDA GPU: the sampler on models as recipes compile them, beside the same in bf16.

Weights are random, as those of `bench.step`: their tokens mean nothing, and take as long as others do. The model in
bf16 runs by the loop of its publication (`bench.published`), by our sampler without graphs, and as a compiled one does.
Every text is generated with few steps twice before, in which kernels are compiled and steps captured.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path

import torch

from qspec import passes
from qspec.bench.generation_data import BF16, OURS, Execution, Generation, GenerationCell
from qspec.bench.measure import need_gpu
from qspec.bench.published import is_published, published
from qspec.bench.step import DTYPE, quantized
from qspec.bench.step_data import MODELS
from qspec.kernels import attention
from qspec.language import load_recipe
from qspec.models.decoder import Decoder
from qspec.models.known import known_models
from qspec.models.registry import FAMILIES
from qspec.models.sampler import SamplerSettings, Settings, sample, settings_for
from qspec.models.sdar import SDAR
from qspec.plan import make_plan
from qspec.plan.generating import generating_memory
from qspec.progress import Progress
from qspec.report.environment import environment
from qspec.runtime import text_sizes

BLOCK = 32  # tokens
EXACT = "exact"  # the cache of a block-causal model, which changes no token
SDAR_8B = replace(SDAR.shape(known_models()["JetLM/SDAR-1.7B-Chat"]), layers=36, width=4096, heads=32, ffn=12288)
WRITERS = {**MODELS, "sdar": (SDAR, SDAR_8B)}
WARM = 3  # steps of a block that see every pass eagerly, captured, and replayed


@dataclass(frozen=True)
class Texts:
    """What is generated: length tokens in as many steps behind prompts of `prompt`, for every batch size and cache.

    caches: of "none", "prefix", "dual"; a block-causal model has its own.
    """

    prompt: int
    length: int
    batches: Sequence[int]
    caches: Sequence[str]


def run_generation(recipes: Sequence[Path], models: Sequence[str], texts: Texts, progress: Progress) -> Generation:
    """Times every model in bf16, in every way, and captured under every recipe. Raises MachineError, RecipeError."""
    need_gpu()
    cells: list[GenerationCell] = []
    for model in models:
        family, shape = WRITERS[model]
        plans = [make_plan(load_recipe(path, passes.available(), {}, FAMILIES).spec, family, shape) for path in recipes]
        decoder = Decoder(family, shape, device="cuda", dtype=DTYPE).requires_grad_(False)
        whole = sum(weight.nbytes for weight in decoder.parameters())
        progress.step(f"{model}  {BF16}, as published")
        cells += _measure(decoder, (model, BF16, "published"), whole, texts)
        for execution in OURS:
            progress.step(f"{model}  {BF16}, {execution}")
            cells += _measure(attention.install(decoder), (model, BF16, execution), whole, texts)
        for plan in plans:
            progress.step(f"{model}  {plan.spec.name}")
            decoder = quantized(plan, decoder)  # takes over what lies outside the blocks
            gc.collect()  # the blocks before
            cells += _measure(decoder, (model, plan.spec.name, "captured"), plan.bytes_after, texts)
    return Generation(environment(), tuple(cells))


def _measure(decoder: Decoder, run: tuple[str, str, Execution], weights: int, texts: Texts) -> Iterator[GenerationCell]:
    """run: model, recipe and execution. weights: bytes of the model, as the plan has them."""
    plain = run[2] == "published"
    fill = published if plain else partial(sample, attention_mask=None, captured=run[2] == "captured")
    caches = texts.caches if decoder.shape.block is None else (EXACT,)
    for batch, cache in product(texts.batches, caches):
        settings = _settings(decoder, texts.length, cache)
        if settings is None or (plain and not is_published(settings)):
            continue
        prompts = torch.randint(
            decoder.shape.mask_token, (batch, texts.prompt), generator=torch.Generator().manual_seed(0)
        )
        for _ in range(2):  # of one block a full pass is captured in the second text alone
            fill(decoder, prompts, settings=_few_steps(settings))
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        start = time.perf_counter()
        fill(decoder, prompts, settings=settings)
        torch.cuda.synchronize()
        seconds, peak = time.perf_counter() - start, torch.cuda.max_memory_allocated()
        sizes = (batch, texts.prompt, settings.length, settings.steps)
        planned = generating_memory(decoder.shape, weights, text_sizes(settings, batch, texts.prompt + settings.length))
        yield GenerationCell(*run, cache, *sizes, seconds, peak, None if plain else planned.total)


def _settings(decoder: Decoder, length: int, cache: str) -> Settings | None:
    """One token a step, in blocks where the sampler has them; None for a cache that it does not have."""
    if decoder.shape.sampler == "block":
        return settings_for(decoder.shape, length)
    if decoder.shape.sampler == "dream":
        kept = None if cache == "none" else cache
        return None if cache == "dual" else settings_for(decoder.shape, length, cache=kept)
    return settings_for(decoder.shape, length, block=BLOCK, cache=None if cache == "none" else cache)


def _few_steps(settings: Settings) -> Settings:
    """As many steps as see every step eagerly, captured, and replayed. Dream's need all, for masks become fewer; so do
    those of blocks, for keys become more."""
    if isinstance(settings, SamplerSettings):
        return replace(settings, steps=min(settings.steps, WARM * settings.blocks))
    return settings
