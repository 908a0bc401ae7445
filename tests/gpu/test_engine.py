"""Denoising by CUDA graphs gives the tokens of eager passes, and keeps no more memory from run to run.

python -m pytest tests/gpu/test_engine.py -m gpu
"""

from __future__ import annotations

import gc
from functools import lru_cache
from typing import Any

import pytest
import torch
from torch import Tensor

from qspec import passes, resources, runtime
from qspec.bench.step import quantized
from qspec.errors import NumericsError
from qspec.language import load_recipe
from qspec.models.decoder import Decoder
from qspec.models.engine import CAPTURED
from qspec.models.registry import FAMILIES
from qspec.models.sampler import SampleStep, Settings, sample, settings_for
from qspec.plan import make_plan

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]
RECIPES = ("none", "rtn_w8a8", "duquant_w4a4", "gptq_w4a16")
OPTIONS: dict[str, list[dict[str, Any]]] = {
    "llada": [
        {},
        {"cache": "prefix"},
        {"cache": "dual"},
        {"cfg": 0.5, "cache": "dual"},
        {"temperature": 0.8, "remasking": "random", "seed": 3},
    ],
    "dream": [
        {},
        {"cache": "prefix"},
        {"alg": "origin", "seed": 3},
        {"alg": "topk_margin", "alg_temp": 0.4, "temperature": 0.8, "top_p": 0.9, "top_k": 20},
    ],
}


@lru_cache(maxsize=1)
def model_of(family: str, recipe: str) -> Decoder:
    """The stand-in in bfloat16; under a recipe with random codes in place of its weights."""
    plain, _ = runtime.load(resources.standin(family), "cuda")
    if recipe == "none":
        return plain
    spec = load_recipe(resources.recipes() / "paper" / f"{recipe}.qs", passes.available(), {}, FAMILIES).spec
    return quantized(make_plan(spec, plain.family, plain.shape, standin=True), plain)


def prompts(rows: int, seed: int, padded: bool) -> tuple[Tensor, Tensor | None]:
    ids = torch.randint(5, 60, (rows, 9), generator=torch.Generator().manual_seed(seed))
    if not padded:
        return ids, None
    mask = torch.ones_like(ids)
    mask[0, :4] = 0
    return ids, mask


def settings_of(model: Decoder, options: dict[str, Any]) -> Settings:
    block = 8 if model.shape.sampler == "llada" else None
    return settings_for(model.shape, 32, 32 if block else 24, block, **options)


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("family", ["llada", "dream"])
def test_graphs_give_the_tokens_of_eager_passes(family: str, recipe: str) -> None:
    """Every option of the sampler, one row and three with padding, the second run by the first one's graphs."""
    model = model_of(family, recipe)
    for options in OPTIONS[family]:
        settings = settings_of(model, options)
        for rows, padded in ((1, False), (3, True)):
            for seed in (0, 1):
                given = prompts(rows, seed, padded)
                eager: list[SampleStep] = []
                steps: list[SampleStep] = []
                expected = sample(model, *given, settings, eager.append, captured=False)
                assert torch.equal(sample(model, *given, settings, steps.append), expected), (options, rows, seed)
                for one, other in zip(steps, eager, strict=True):
                    assert torch.equal(one.committed, other.committed)
                    assert torch.equal(one.confidence, other.confidence)


def test_memory_is_flat_over_many_lengths() -> None:
    """Sixty texts of random lengths, batches and caches; the graphs of the latest shapes alone are kept."""
    model = model_of("llada", "duquant_w4a4")
    generator = torch.Generator().manual_seed(0)
    used: list[int] = []
    for number in range(60):
        rows, prompt, blocks, cache = (
            int(torch.randint(low, high, (1,), generator=generator)) for low, high in ((1, 4), (1, 40), (1, 5), (0, 3))
        )
        ids = torch.randint(5, 60, (rows, prompt), generator=generator)
        kept = (None, "prefix", "dual")[cache]
        sample(model, ids, None, settings_for(model.shape, 8 * blocks, block=8, cache=kept))
        if number % 20 == 19:
            gc.collect()
            torch.cuda.empty_cache()
            used.append(torch.cuda.memory_reserved())
    assert used[2] <= used[0] * 1.1 + (64 << 20), used


def test_graphs_end_with_their_model() -> None:
    model_of.cache_clear()
    gc.collect()
    kept = len(CAPTURED)
    model = model_of("llada", "none")
    sample(model, *prompts(1, 0, False), settings_of(model, {}))
    assert len(CAPTURED) == kept + 1
    del model
    model_of.cache_clear()
    gc.collect()
    assert len(CAPTURED) == kept


def test_weights_that_moved_are_captured_anew() -> None:
    model = model_of("llada", "duquant_w4a4")
    settings, given = settings_of(model, {}), prompts(1, 0, False)
    expected = sample(model, *given, settings)
    model.cpu()
    model.cuda()
    assert torch.equal(sample(model, *given, settings), expected)
    model_of.cache_clear()


def test_logits_that_are_not_finite_are_an_error() -> None:
    plain, _ = runtime.load(resources.standin("llada"), "cuda")
    weight = plain.embedding.weight
    assert isinstance(weight, Tensor)
    weight[plain.shape.mask_token] = torch.nan
    with pytest.raises(NumericsError, match="NaN or Inf"):
        sample(plain, *prompts(1, 0, False), settings_of(plain, {}))


@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype:UserWarning")
def test_steps_of_llada_wait_for_nothing() -> None:
    """The host runs ahead of the GPU: torch reports a synchronization within a block's replayed steps as an error."""
    model = model_of("llada", "duquant_w4a4")
    settings = settings_for(model.shape, 32, block=32, cache="dual")
    ids = torch.randint(5, 60, (1, 40), device="cuda")
    sample(model, ids, None, settings)
    modes: list[int] = []

    def on_step(step: SampleStep) -> None:
        if step.index in (0, 30):
            torch.cuda.set_sync_debug_mode("error" if step.index == 0 else "default")
            modes.append(step.index)

    try:
        sample(model, ids, None, settings, on_step)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert modes == [0, 30]
