"""The engine's passes against the decoder's: the same tokens, whatever runs before on the same buffers.

CUDA graphs need a GPU (tests/gpu/test_engine.py). Here a capture is a call that is made again, with what it closed over
at the time, so that an input that does not come by way of the engine's buffers is seen: the replay would not see it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from qspec.errors import NumericsError
from qspec.models import engine as engines
from qspec.models import sampler
from qspec.models.decoder import ALL, Decoder
from qspec.models.engine import CANVASES, Engine
from qspec.models.sampler import DreamSettings, SamplerSettings, SampleStep, Settings, sample
from tests.models.test_cached import dream, llada


class Again:
    """`Capture` by making the call again; counts captures and replays."""

    def __init__(self) -> None:
        self.captures = self.replays = 0

    def __call__(self, call: Callable[[], Tensor]) -> tuple[Tensor, Callable[[], None]]:
        self.captures += 1
        result = torch.full_like(call(), torch.nan)

        def replay() -> None:
            self.replays += 1
            result.copy_(call())

        return result, replay


@dataclass
class Fixture:
    capture: Again
    engine: Engine | None = None

    def of(self, model: Decoder) -> Engine:
        if self.engine is None:
            self.engine = Engine(model, self.capture)
        return self.engine


@pytest.fixture
def replayed(monkeypatch: pytest.MonkeyPatch) -> Fixture:
    """`sample` runs on one engine, as on a GPU."""
    fixture = Fixture(Again())
    monkeypatch.setattr(sampler, "engine", lambda model: fixture.of(model))
    return fixture


def prompts(seed: int, padded: bool) -> tuple[Tensor, Tensor | None]:
    """Two rows of five tokens; padded: the first has three."""
    ids = torch.randint(0, 20, (2, 5), generator=torch.Generator().manual_seed(seed))
    if not padded:
        return ids, None
    mask = torch.ones_like(ids)
    mask[0, :2] = 0
    return ids, mask


LLADA: list[dict[str, Any]] = [
    {},
    {"cache": "prefix"},
    {"cache": "dual"},
    {"cfg": 1.0},
    {"cfg": 1.0, "cache": "dual"},
    {"temperature": 0.7, "seed": 3},
    {"remasking": "random", "seed": 3},
]
DREAM: list[dict[str, Any]] = [
    {},
    {"cache": "prefix"},
    {"alg": "origin", "seed": 3},
    {"alg": "topk_margin", "alg_temp": 0.5},
    {"alg": "maskgit_plus", "temperature": 0.7, "top_p": 0.9, "top_k": 5},
]
CASES = [
    *((llada, SamplerSettings(8, 8, 4, **options)) for options in LLADA),
    *((dream, DreamSettings(8, 6, **options)) for options in DREAM),
]


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize(("make", "settings"), CASES)
def test_tokens_are_the_decoders(
    replayed: Fixture, make: Callable[[], Decoder], settings: Settings, padded: bool
) -> None:
    """Twice, with other prompts and padding of one shape: the second run replays what the first one captured."""
    model = make()
    for seed in (0, 1):
        given = prompts(seed, padded)
        assert torch.equal(sample(model, *given, settings), sample(model, *given, settings, captured=False))
    assert replayed.capture.replays > replayed.capture.captures > 0
    windows = {None: 0, "prefix": 2, "dual": 1}[settings.cache]  # a prefix leaves a shorter one to the second block
    assert replayed.capture.captures <= 1 + windows


def test_a_window_of_every_block_is_one_pass(replayed: Fixture) -> None:
    sample(llada(), *prompts(0, False), SamplerSettings(16, 16, 4, cache="dual"))
    assert replayed.capture.captures == 2


def test_a_pass_runs_once_before_it_is_captured() -> None:
    model, capture = llada(), Again()
    engine = Engine(model, capture)
    ids = torch.arange(6).reshape(1, 6)
    first = engine.hidden(ids)
    assert capture.captures == 0
    second = engine.hidden(ids.flip(1))
    assert (capture.captures, capture.replays) == (1, 1)
    assert torch.equal(first, model.hidden(ids))
    assert torch.equal(second, model.hidden(ids.flip(1)))


def test_the_latest_canvases_are_kept() -> None:
    model, capture = llada(), Again()
    engine = Engine(model, capture)
    lengths = range(4, 4 + CANVASES + 1)
    for length in (*lengths, *lengths):
        engine.hidden(torch.zeros(1, length, dtype=torch.int64))
    assert capture.captures == 0  # each came back after it was dropped
    for _ in range(2):
        engine.hidden(torch.zeros(1, lengths[-1], dtype=torch.int64))
    assert capture.captures == 1


def test_graphs_of_weights_that_moved_are_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "CudaGraphs", Again)
    model = llada()
    first = Engine(model)
    assert Engine(model)._passes is first._passes
    model.final_norm.weight = torch.nn.Parameter(model.final_norm.weight.detach().clone(), requires_grad=False)
    assert Engine(model)._passes is not first._passes


def test_a_model_is_not_kept_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "CudaGraphs", Again)
    before = len(engines.CAPTURED)
    model = llada()
    Engine(model).hidden(torch.zeros(1, 4, dtype=torch.int64))
    assert len(engines.CAPTURED) == before + 1
    del model
    assert len(engines.CAPTURED) == before


def test_on_a_cpu_the_decoder_itself_runs() -> None:
    model = llada()
    assert engines.engine(model) is model


@pytest.mark.parametrize(("make", "settings"), [(llada, SamplerSettings(8, 8, 4)), (dream, DreamSettings(40, 40))])
def test_a_step_with_logits_that_are_not_finite_ends_the_run(make: Callable[[], Decoder], settings: Settings) -> None:
    """At the end of LLaDA's block of four, of Dream's sixteen steps: not after all of them."""
    model = make()
    weight = model.embedding.weight
    assert isinstance(weight, Tensor)
    weight[model.shape.mask_token] = torch.nan
    steps: list[SampleStep] = []
    with pytest.raises(NumericsError, match="NaN or Inf"):
        sample(model, *prompts(0, False), settings, steps.append)
    assert len(steps) == (4 if isinstance(settings, SamplerSettings) else 16)


def test_windows_keep_keys_and_values_in_the_engines_room() -> None:
    model = llada()
    window = Engine(model, Again()).window(1, 8)
    assert window.tokens == ALL
    assert window.kept == ()
