"""Denoising by CUDA graphs gives the tokens of eager passes, and keeps no more memory from run to run.

python -m pytest tests/gpu/test_engine.py -m gpu
"""

from __future__ import annotations

import gc
import subprocess
import sys
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import pytest
import torch
from torch import Tensor
from triton import knobs

from qspec import passes, resources, runtime
from qspec.bench.step import quantized
from qspec.errors import NumericsError
from qspec.language import load_recipe
from qspec.models import engine as engines
from qspec.models.decoder import Decoder
from qspec.models.engine import CAPTURED, Step, graphs_of
from qspec.models.operations import TORCH
from qspec.models.registry import FAMILIES
from qspec.models.sampler import SampleStep, Settings, sample, settings_for
from qspec.models.samplers.noise import uniform
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
        {"temperature": 0.8, "seed": 3},
        {"temperature": 0.8, "remasking": "random", "seed": 3},
        {"threshold": 0.5},
        {"factor": 1.5, "cache": "dual"},
        {"logits_eos_inf": True, "confidence_eos_eot_inf": True},
        {"stop": True},
    ],
    "dream": [
        {},
        {"cache": "prefix"},
        {"alg": "origin", "seed": 3},
        {"alg": "maskgit_plus", "temperature": 0.8, "seed": 3},
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
                assert engines.execution(model) == "captured"
                for one, other in zip(steps, eager, strict=True):
                    assert torch.equal(one.committed, other.committed)
                    assert torch.equal(one.confidence, other.confidence)


def test_rows_whose_heads_share_multiprocessors_are_denoised_alike() -> None:
    """160 programs of attention, more than there are multiprocessors, crowded by kernels that are launched early."""
    model = model_of("llada", "rtn_w8a8")
    settings, given = settings_of(model, {"cache": "dual"}), prompts(40, 4, True)
    expected = sample(model, *given, settings, captured=False)
    for _ in range(5):
        assert torch.equal(sample(model, *given, settings), expected)
    assert engines.execution(model) == "captured"


@pytest.mark.parametrize("family", ["llada", "dream"])
def test_graphs_commit_what_torch_commits(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every option of the sampler, of rows with padding: captured steps, against eager ones without the kernel."""
    model = model_of(family, "none")
    for options in OPTIONS[family]:
        settings, given = settings_of(model, options), prompts(3, 2, True)
        steps: list[list[SampleStep]] = [[], []]
        sample(model, *given, settings)
        found = sample(model, *given, settings, steps[0].append)
        assert engines.execution(model) == "captured"
        with monkeypatch.context() as patch:
            for block in model.blocks:
                patch.setattr(block, "operations", block.operations._replace(commit=TORCH.commit))
            expected = sample(model, *given, settings, steps[1].append, captured=False)
        assert torch.equal(found, expected), options
        for one, other in zip(*steps, strict=True):
            assert torch.equal(one.committed, other.committed), options


def test_a_thousand_texts_of_random_lengths_keep_memory_flat_and_compile_and_capture_nothing_twice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Prompts of 1 to 200 tokens, 1 or 2 rows, three caches. The first 400 texts warm up; a step that they did not
    meet is one of a canvas that is exactly filled."""
    compiled, kernels = list[str](), list[int]()
    monkeypatch.setattr(
        knobs.runtime, "jit_post_compile_hook", lambda **given: compiled.append(f"{given['fn'].name} {given['key']}")
    )
    model = model_of("llada", "duquant_w4a4")
    generator = torch.Generator().manual_seed(0)
    graphs, used, captured = graphs_of(model), list[int](), list[int]()
    graphs.drop()
    capture, captures = graphs.capture, 0

    def counted(step: Step) -> tuple[tuple[Tensor, ...], Callable[[], None]]:
        nonlocal captures
        captures += 1
        return capture(step)

    graphs.capture = counted
    longest = settings_for(model.shape, 32, block=8, cache="dual")
    sample(model, torch.ones(2, 200, dtype=torch.int64), None, longest)  # takes the room for keys and values
    for number in range(1, 1001):
        rows, prompt, blocks, cache = (
            int(torch.randint(low, high, (1,), generator=generator)) for low, high in ((1, 3), (1, 201), (1, 5), (0, 3))
        )
        ids = torch.randint(5, 60, (rows, prompt), generator=generator)
        kept = (None, "prefix", "dual")[cache]
        sample(model, ids, None, settings_for(model.shape, 8 * blocks, 4 * blocks, block=8, cache=kept))
        if number in (400, 700, 1000):
            torch.cuda.empty_cache()
            used.append(torch.cuda.memory_reserved())  # of this process; other tests may share the GPU
            captured.append(captures)
            kernels.append(len(compiled))
    graphs.capture = capture
    print(f"{captured} graphs, {kernels} kernels, {[round(size / 1e6) for size in used]} MB")
    assert len(set(compiled)) == len(compiled)
    assert kernels[2] - kernels[0] <= 10  # of more keys, which are cut into more parts
    assert captures == sum(step.replay is not None for step in graphs.steps.values())
    assert captured[2] - captured[0] <= 10
    assert used[2] <= used[0] + (64 << 20), used


def test_random_numbers_are_those_of_a_cpu() -> None:
    given = torch.tensor(7), torch.tensor(3), torch.tensor([2, 5]), torch.tensor([[0, 1, 9], [4, 4, 4095]])
    for count in (None, 1000):
        there = uniform(*(t.cuda() for t in given), "token", count).cpu()
        assert torch.equal(there, uniform(*given, "token", count))


def test_an_operator_that_waits_for_the_device_is_run_eagerly(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of("llada", "none")
    settings, given = settings_of(model, {"cache": "dual"}), prompts(1, 0, False)
    expected = sample(model, *given, settings, captured=False)
    embed, why = Decoder.embed, graphs_of(model).why

    def waits(self: Decoder, input_ids: Tensor) -> Tensor:
        assert int(input_ids.max()) < self.shape.vocab
        return embed(self, input_ids)

    with monkeypatch.context() as patch:
        patch.setattr(Decoder, "embed", waits)
        graphs_of(model).drop()
        assert torch.equal(sample(model, *given, settings), expected)
        assert engines.execution(model).startswith("eager (no CUDA graph could be captured: ")
        print(engines.execution(model))
    graphs_of(model).why = why
    assert torch.equal(sample(model, *given, settings), expected)
    assert engines.execution(model) == "captured"


def test_an_interrupted_capture_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of("llada", "none")
    settings, given = settings_of(model, {}), prompts(1, 0, False)
    expected = sample(model, *given, settings, captured=False)
    graphs_of(model).drop()
    embed, calls = Decoder.embed, 0

    def interrupted(self: Decoder, input_ids: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt
        return embed(self, input_ids)

    with monkeypatch.context() as patch:
        patch.setattr(Decoder, "embed", interrupted)
        with pytest.raises(KeyboardInterrupt):
            sample(model, *given, settings)
    assert calls == 2
    assert torch.equal(sample(model, *given, settings), expected)
    assert engines.execution(model) == "captured"


LOST = """
import torch
from qspec import resources, runtime
from qspec.errors import MachineError
from qspec.models.decoder import Decoder
from qspec.models.sampler import sample, settings_for
model, _ = runtime.load(resources.standin("llada"), "cuda")
embed = Decoder.embed
Decoder.embed = lambda self, ids: embed(self, ids + (1 << 40))
try:
    sample(model, torch.tensor([[7, 8]]), None, settings_for(model.shape, 8))
except MachineError as error:
    print(error)
"""


def test_a_gpu_that_is_lost_is_one_error() -> None:
    """After an assertion on the device, CUDA refuses everything that the process asks for."""
    done = subprocess.run([sys.executable, "-c", LOST], capture_output=True, text=True, timeout=300)
    assert done.stdout.startswith("the GPU failed: CUDA error: device-side assert triggered"), done.stderr
    assert "nvidia-smi" in done.stdout
    assert done.returncode == 0


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
