"""What all samplers share: what they ask of a model, what they report, logits of a part of the canvas."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import torch
from torch import Tensor

from qspec.errors import NumericsError, UsageError
from qspec.models.family import DecoderShape
from qspec.models.shift import predictors
from qspec.values import LARGEST_SEED

HEAD_VALUES = 1 << 25  # logits held at once: 128 MB in float32


class Denoiser(Protocol):
    """What a sampler asks of a model; `Decoder` has it."""

    @property
    def shape(self) -> DecoderShape: ...

    @property
    def device(self) -> torch.device: ...

    def hidden(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor: ...

    def finish(self, x: Tensor) -> Tensor: ...


M = TypeVar("M", bound=Denoiser)


class Around(Generic[M]):
    """A denoiser around another one, which has its own way to `hidden`."""

    def __init__(self, model: M) -> None:
        self.model = model

    @property
    def shape(self) -> DecoderShape:
        return self.model.shape

    @property
    def device(self) -> torch.device:
        return self.model.device

    def finish(self, x: Tensor) -> Tensor:
        return self.model.finish(x)


@dataclass(frozen=True)
class SampleStep:
    """What one step decided: `tokens` with `confidence` where `committed`; [b, length] each, over the generated text.

    index: 0 .. steps - 1. tokens and confidence mean nothing where nothing was committed.
    """

    index: int
    committed: Tensor
    tokens: Tensor
    confidence: Tensor


@dataclass(frozen=True)
class Canvas:
    """Prompts and the masks to fill: ids int64 [b, prompt + length], written in place; attention_mask alike or None."""

    ids: Tensor
    attention_mask: Tensor | None
    prompt: int

    @property
    def text(self) -> Tensor:
        """The part that is generated, a view [b, length]."""
        return self.ids[:, self.prompt :]


def predicting(model: Denoiser, ids: Tensor, attention_mask: Tensor | None) -> Tensor:
    """One forward pass: x [b, t, d] that `model.finish` turns into the logits of each position's own token."""
    return predictors(model.hidden(ids, attention_mask), model.shape, attention_mask)


def finite(logits: Tensor) -> Tensor:
    """The logits. Errors: NumericsError where one is NaN or Inf."""
    if not bool(logits.isfinite().all()):
        raise NumericsError("the model's logits are NaN or Inf", hint="look for broken scales in the artifact")
    return logits


def most_confident(confidence: Tensor, count: int) -> Tensor:
    """bool, like confidence [b, n]: the `count` largest of each row, without those that are -inf."""
    values, positions = confidence.topk(count, dim=-1)
    return torch.zeros_like(confidence, dtype=torch.bool).scatter(-1, positions, values > -torch.inf)


def check_positive(**values: int) -> None:
    """Errors: UsageError naming the first value below 1."""
    for name, value in values.items():
        if value < 1:
            raise UsageError(f"{name} is {value}; it must be at least 1")


def check_finite(**values: float) -> None:
    """Errors: UsageError naming the first value that is negative, infinite or NaN."""
    for name, value in values.items():
        if not 0 <= value < float("inf"):
            raise UsageError(f"{name} is {value}; it must be a finite number from 0 on")


def check_seed(seed: int) -> None:
    """Errors: UsageError for a seed that torch's generator does not tell from another."""
    if not 0 <= seed <= LARGEST_SEED:
        raise UsageError(f"seed is {seed}; it must lie in 0..{LARGEST_SEED}")
