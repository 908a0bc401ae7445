"""Captured passes over canvases of noise against eager ones: the same tokens, whatever was denoised before.

A capture is a pass that is made again (`tests.models.test_engine`): eager canvases are as long as their texts, captured
ones have room for more, whose keys are read and weigh nothing.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from qspec.errors import NumericsError
from qspec.models.sampler import SampleStep, left_padded, sample
from qspec.models.samplers import renoise
from qspec.models.samplers.noise_canvas import NoiseShape
from qspec.models.samplers.renoise import RenoiseSettings
from qspec.plan.generating import TextSizes
from qspec.runtime import text_sizes
from tests.models.gemma_layout import TWO_BLOCKS, random_decoder
from tests.models.test_engine import Fixture, replayed  # noqa: F401 (a fixture)

SIZES = TWO_BLOCKS | {"num_experts": 2, "top_k_experts": 1}
SHARP: dict[str, Any] = {"t_min": 0.05, "t_max": 0.3, "entropy_bound": 0.5, "confidence_threshold": 0.2}


@pytest.mark.parametrize("options", [{"seed": 3}, SHARP | {"stability_threshold": 0, "stop": True}], ids=str)
def test_tokens_are_those_of_eager_passes(replayed: Fixture, options: dict[str, Any]) -> None:  # noqa: F811
    """Three canvases behind prompts of several lengths, one row and two: runs replay what the first ones captured."""
    decoder, settings = random_decoder(torch.float64, **SIZES), RenoiseSettings(20, 12, **options)
    for prompts in ([[5, 6, 7]], [list(range(9, 50)), [8]], [[40] * 5, list(range(30))], [list(range(50, 60))]):
        given, steps = left_padded(prompts, 0), [list[SampleStep](), list[SampleStep]()]
        found = sample(decoder, *given, settings, steps[0].append)
        assert torch.equal(found, sample(decoder, *given, settings, steps[1].append, captured=False))
        for one, other in zip(*steps, strict=True):
            assert torch.equal(one.committed, other.committed)
            assert torch.equal(one.tokens, other.tokens)
            assert torch.allclose(one.confidence, other.confidence, atol=1e-6)
    # Passes over noise, prompts and finished canvases: of three shapes of canvas, one of them with two numbers of keys.
    assert 3 <= replayed.capture.captures <= 3 * 3 + 1
    assert replayed.capture.replays > 2 * replayed.capture.captures


class Together(torch.nn.Module):
    """In the place of grouped experts, as on a GPU: expert by expert waits for the device."""

    def forward(self, x: Tensor, *_: Tensor) -> Tensor:
        return x


def test_a_pass_reads_no_number_on_the_host() -> None:
    """On the meta device, where there are none: so that a graph can hold the pass."""
    decoder = random_decoder(torch.float64).to("meta")
    for block in decoder.blocks:
        block.grouped = Together()
    canvas = NoiseShape(2, 64, 1).canvas(decoder)
    canvas.keep(decoder, torch.empty(canvas.room(decoder), dtype=torch.float64, device="meta"))
    canvas.start()
    assert renoise._read(decoder, canvas, 8, 32) == ()
    results = renoise._step(decoder, RenoiseSettings(8, 4), canvas, 32)
    assert {t.device.type for t in results} == {"meta"}


@pytest.mark.parametrize("captured", [True, False])
@pytest.mark.usefixtures("replayed")
def test_logits_that_are_not_finite_stop(captured: bool) -> None:
    decoder = random_decoder(torch.float32)
    decoder.final_norm.weight[0] = torch.nan
    with pytest.raises(NumericsError, match="logits are NaN or Inf"):
        sample(decoder, torch.tensor([[5, 6]]), None, RenoiseSettings(8, 4), captured=captured)


def test_the_room_of_texts_is_that_of_their_canvases() -> None:
    assert text_sizes(RenoiseSettings(64, 64), 2, 1100) == TextSizes(2, 1536, 64, cache=True)
