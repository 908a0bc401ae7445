"""The sampler of DiffusionGemma against `generate` of transformers, on a tiny model with random weights.

transformers draws from torch's generator: here its draws are ours, place by place.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.models.diffusion_gemma import generation_diffusion_gemma as published
from transformers.models.diffusion_gemma.configuration_diffusion_gemma import DiffusionGemmaConfig
from transformers.models.diffusion_gemma.modeling_diffusion_gemma import DiffusionGemmaForBlockDiffusion

from qspec.errors import UsageError
from qspec.models.decoder import Decoder
from qspec.models.sampler import sample, until
from qspec.models.samplers.common import SampleStep
from qspec.models.samplers.dream import drawn
from qspec.models.samplers.noise import uniform
from qspec.models.samplers.renoise import RenoiseSettings
from tests.models.gemma_layout import CANVAS, decoder_of

VOCAB, END = 40, 3


def tiny(scale: float) -> DiffusionGemmaForBlockDiffusion:
    """scale: of the embedding, and with it of the logits."""
    config = DiffusionGemmaConfig(
        text_config={
            "vocab_size": VOCAB, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
            "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "global_head_dim": 16,
            "num_global_key_value_heads": 1, "num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 12,
            "sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"], "pad_token_id": 0,
            "eos_token_id": END,
        },
        vision_config={
            "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1,
            "num_key_value_heads": 1, "head_dim": 8,
        },
        canvas_length=CANVAS,
    )  # fmt: skip
    torch.manual_seed(0)
    model = DiffusionGemmaForBlockDiffusion(config).eval().requires_grad_(False)
    for name, weight in model.named_parameters():
        weight.copy_(torch.randn(weight.shape) * (scale if "embed_tokens" in name else 0.3))
    return model


class Draws:
    """Our random numbers in transformers' order: for every canvas noise, then for every pass tokens and noise."""

    def __init__(self, seed: int, rows: int, vocab: int) -> None:
        self.seed, self.rows, self.vocab, self.canvas, self.number = seed, rows, vocab, -1, 0

    def uniform(self, purpose: Any) -> Tensor:
        places = torch.arange(self.canvas * CANVAS, (self.canvas + 1) * CANVAS).expand(self.rows, -1)
        return uniform(torch.tensor(self.seed), torch.tensor(self.number), torch.arange(self.rows), places, purpose)

    def prepare(self, denoiser_inputs: Any) -> Any:
        def prepared(*args: Any, **kwargs: Any) -> Any:
            self.canvas, self.number = self.canvas + 1, 0
            return denoiser_inputs(*args, **kwargs)

        return prepared

    def noise(self, batch_size: int, device: torch.device) -> Tensor:
        return (self.uniform("place") * self.vocab).long()

    def multinomial(self, p: Tensor, num_samples: int) -> Tensor:
        self.number += 1
        return drawn(p.view(self.rows, CANVAS, self.vocab), self.uniform("token")).view(-1, num_samples)


def theirs(
    monkeypatch: pytest.MonkeyPatch, model: DiffusionGemmaForBlockDiffusion, prompts: Tensor, s: RenoiseSettings
) -> tuple[Tensor, int]:
    """The new tokens, and how many passes were made."""
    draws = Draws(s.seed, len(prompts), model.config.text_config.vocab_size)
    monkeypatch.setattr(torch, "multinomial", draws.multinomial)
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: None)  # imports torch's compiler
    monkeypatch.setattr(
        published.EntropyBoundSampler,
        "initialize_canvas",
        lambda _, batch_size, device: draws.noise(batch_size, device),
    )
    monkeypatch.setattr(model, "_prepare_denoiser_inputs", draws.prepare(model._prepare_denoiser_inputs))
    passes = 0

    def counted(*_: Any) -> None:
        nonlocal passes
        passes += 1

    hook = model.model.decoder.register_forward_hook(counted)
    config = published.DiffusionGemmaGenerationConfig(
        max_new_tokens=s.length,
        max_denoising_steps=len(s.temperatures(CANVAS)),
        sampler_config=published.EntropyBoundSamplerConfig(s.entropy_bound),
        t_min=s.t_min,
        t_max=s.t_max,
        stability_threshold=s.stability_threshold,
        confidence_threshold=s.confidence_threshold,
        eos_token_id=END if s.stop else None,
        pad_token_id=END,
    )
    model.generation_config = config
    found = model.generate(prompts, generation_config=config).sequences[:, prompts.shape[1] :]
    hook.remove()
    return found, passes


def ours(decoder: Decoder, prompts: Tensor, s: RenoiseSettings) -> tuple[Tensor, list[SampleStep]]:
    steps: list[SampleStep] = []
    return sample(decoder, prompts, None, s, steps.append)[:, prompts.shape[1] :], steps


PROMPTS = torch.tensor([[5, 6, 7, 8, 9], [11, 4, 12, 30, 2]])


SHARP: dict[str, Any] = {"t_min": 0.1, "t_max": 0.6, "entropy_bound": 0.5, "confidence_threshold": 0.3}
STOP: dict[str, Any] = {
    "t_min": 0.02,
    "t_max": 0.3,
    "confidence_threshold": 1.0,
    "stability_threshold": 0,
    "stop": True,
}


@pytest.mark.parametrize(
    ("scale", "settings"),
    [
        (0.3, RenoiseSettings(16, 24, seed=3)),
        (3.0, RenoiseSettings(24, 36, **SHARP)),
        (3.0, RenoiseSettings(24, 36, **SHARP, stability_threshold=2)),
        (3.0, RenoiseSettings(20, 36, **SHARP, stability_threshold=0, seed=2)),
    ],
    ids=["as published", "the same twice", "three times", "once"],
)
def test_tokens_are_those_of_transformers(
    monkeypatch: pytest.MonkeyPatch, scale: float, settings: RenoiseSettings
) -> None:
    """Two rows, of which one settles in fewer passes."""
    model = tiny(scale)
    decoder = decoder_of(model, torch.float32)
    found, steps = ours(decoder, PROMPTS, settings)
    expected, passes = theirs(monkeypatch, model, PROMPTS, settings)
    assert torch.equal(found, expected[:, : settings.length])
    assert [step.index for step in steps] == list(range(passes))
    assert torch.equal(steps[-1].tokens[:, 16:], found[:, 16:])
    if settings.stability_threshold == 2:
        return
    alone, fewer = ours(decoder, PROMPTS[:1], settings)
    assert torch.equal(found[:1], alone)
    assert (len(fewer) < passes) == (scale > 1)


def test_texts_that_end_are_those_of_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both rows end in the second of three canvases."""
    settings = RenoiseSettings(24, 36, **STOP)
    model = tiny(3.0)
    found, _ = ours(decoder_of(model, torch.float32), PROMPTS, settings)
    expected, _ = theirs(monkeypatch, model, PROMPTS, settings)
    assert expected.shape == (2, 16)
    for own, their in zip(found.tolist(), expected.tolist(), strict=True):
        assert until(own, END) == until(their, END)
        assert own[16:] == [END] * 8


@pytest.mark.parametrize(
    ("given", "what"),
    [
        ({"length": 24, "steps": 8}, "8 steps cannot be shared evenly by 3 canvases of 8 tokens"),
        ({"length": 24, "steps": 2}, "2 steps cannot be shared evenly by 3 canvases"),
        ({"t_min": 0.9}, "t_min is 0.9 and t_max 0.8"),
        ({"t_min": 0.0}, "t_min is 0.0"),
        ({"entropy_bound": -1.0}, "entropy_bound is -1.0"),
        ({"confidence_threshold": float("nan")}, "confidence_threshold is nan"),
        ({"stability_threshold": -1}, "stability_threshold is -1"),
    ],
)
def test_settings_that_do_not_fit(given: dict[str, Any], what: str) -> None:
    with pytest.raises(UsageError, match=what):
        RenoiseSettings(**{"length": 8, "steps": 4} | given).temperatures(CANVAS)


def test_temperatures_fall_to_one_step_above_the_least() -> None:
    """Of t_min 0.4, t_max 0.8 and four passes: 0.4 + 0.4 n / 4, n = 4 .. 1."""
    assert RenoiseSettings(8, 4).temperatures(CANVAS) == pytest.approx((0.8, 0.7, 0.6, 0.5))
