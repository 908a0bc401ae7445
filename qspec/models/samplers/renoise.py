"""DiffusionGemma's sampler, as transformers has it: canvases of uniform noise, denoised with an entropy bound.

A text is written canvas by canvas, c = `shape.block` tokens each. There is no mask token: a canvas starts as tokens
drawn from U(vocabulary). Pass i of N, i = 0 .. N - 1, predicts every token of it from the canvas, the clean text before
it, and what the pass before predicted (self-conditioning), with logits l; then, with T_i = t_min + (t_max - t_min)
(N - i) / N,

    p        = softmax(l / T_i)
    accepted = the k places of least entropy whose sum of entropies, without the largest of them, is at most
               `entropy_bound` (arXiv 2505.24857); at least one
    canvas   = tokens drawn from p where accepted, new noise elsewhere

A canvas is settled once the likeliest tokens were the same in `stability_threshold` passes before, and the mean entropy
lies below `confidence_threshold`; or after N passes. The text then goes on with its likeliest tokens.

Unlike there, random numbers are functions of seed, pass, row and place (`noise`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from qspec.errors import UsageError
from qspec.models.decoder import Decoder
from qspec.models.operations import KeyValues
from qspec.models.samplers.common import (
    Around,
    Denoiser,
    SampleStep,
    check_finite,
    check_positive,
    check_seed,
    token_logits,
)
from qspec.models.samplers.dream import drawn
from qspec.models.samplers.noise import Purpose, uniform
from qspec.models.samplers.run import Decided, Steps

PASSES = 48  # over a canvas, at most, as published


class Refiner(Denoiser, Protocol):
    """A causal encoder, and a decoder that sees a whole canvas and the encoded text before it. Rows of a batch are as
    long as each other."""

    def encode(self, ids: Tensor) -> None:
        """Keeps keys and values of clean tokens int64 [b, n] behind those that are kept."""
        ...

    def refine(self, canvas: Tensor, condition: Tensor | None) -> Tensor:
        """x [b, c, d] of a canvas int64 [b, c], which `finish` turns into logits. condition: of the pass before."""
        ...

    def condition(self, logits: Tensor) -> Tensor:
        """What the next pass is told of logits float32 [b, c, vocab] divided by the temperature; [b, c, ...]."""
        ...


class Text(Around[Decoder]):
    """A decoder with the keys and values of the texts that it goes on with: a `Refiner`.

    real: bool [b, n], which tokens of the prompts are no padding; it may stand in front. length: tokens to write.
    """

    def __init__(self, model: Decoder, real: Tensor, length: int) -> None:
        super().__init__(model)
        assert model.shape.block is not None
        room = real.shape[1] + -(-length // model.shape.block) * model.shape.block
        self._real = torch.nn.functional.pad(real, (0, room - real.shape[1]), value=True)
        self._kept, self._stop = model.window(len(real), room).kept, 0

    def hidden(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        return self.model.hidden(input_ids, attention_mask)

    def encode(self, ids: Tensor) -> None:
        tokens = slice(self._stop, self._stop + ids.shape[1])
        self.model.through(ids, self.model.text_context(self._real, tokens), self._until(tokens.stop))
        self._stop = tokens.stop

    def refine(self, canvas: Tensor, condition: Tensor | None) -> Tensor:
        tokens = slice(self._stop, self._stop + canvas.shape[1])
        context = self.model.canvas_context(self._real, tokens)
        return self.model.canvas_through(canvas, context, self._until(tokens.stop), condition)

    def condition(self, logits: Tensor) -> Tensor:
        return self.model.told(logits)

    def _until(self, stop: int) -> tuple[KeyValues, ...]:
        return tuple(KeyValues(own.keys[:, :, :stop], own.values[:, :, :stop]) for own in self._kept)


@dataclass(frozen=True)
class RenoiseSettings:
    """length: tokens to generate. steps: passes over all canvases, at most. stop: behind a canvas with a token that
    ends it, a row's text is the end-of-text token; canvases behind the last such one are not written.

    Errors: UsageError for a value out of its range.
    """

    length: int
    steps: int
    t_min: float = 0.4
    t_max: float = 0.8
    entropy_bound: float = 0.1
    stability_threshold: int = 1
    confidence_threshold: float = 0.005
    seed: int = 0
    stop: bool = False

    def __post_init__(self) -> None:
        check_positive(length=self.length, steps=self.steps)
        check_seed(self.seed)
        check_finite(
            t_min=self.t_min,
            t_max=self.t_max,
            entropy_bound=self.entropy_bound,
            confidence_threshold=self.confidence_threshold,
            stability_threshold=self.stability_threshold,
        )
        if not 0 < self.t_min <= self.t_max:
            raise UsageError(f"t_min is {self.t_min} and t_max {self.t_max}; 0 < t_min <= t_max is needed")

    def temperatures(self, canvas: int) -> tuple[float, ...]:
        """Of each pass over a canvas of so many tokens. Errors: UsageError unless canvases share the steps evenly."""
        canvases = -(-self.length // canvas)
        passes, rest = divmod(self.steps, canvases)
        if rest or not passes:
            near = max(1, passes) * canvases
            what = f"{self.steps} steps cannot be shared evenly by {canvases} canvases of {canvas} tokens"
            raise UsageError(what, hint=f"try steps {near}: every canvas takes as many at most")
        return tuple(self.t_min + (self.t_max - self.t_min) * (passes - i) / passes for i in range(passes))


def fill(model: Refiner, prompts: Tensor, settings: RenoiseSettings) -> Steps:
    """Denoises the new tokens int64 [b, length] behind prompts int64 [b, n], pass by pass.

    Errors: UsageError for steps that canvases do not share, NumericsError where logits are not finite.
    """
    size = model.shape.block
    assert size is not None
    temperatures, run = settings.temperatures(size), _Run(model, len(prompts), settings)
    model.encode(prompts)
    ends = torch.tensor(model.shape.ends, device=model.device)
    ended = torch.zeros(len(prompts), dtype=torch.bool, device=model.device)
    texts: list[Tensor] = []
    for first in range(0, settings.length, size):
        run.begin(first)
        for temperature in temperatures:
            run.step(temperature)
            yield run.decided()
            if bool(run.settled.all()):
                break
        texts.append(torch.where(ended.unsqueeze(1), model.shape.eos_token, run.draft))
        if settings.stop:
            ended |= torch.isin(run.draft, ends).any(1)
            if bool(ended.all()):
                break
        if first + size < settings.length:
            model.encode(texts[-1])
    text = torch.cat(texts, dim=1)[:, : settings.length]
    behind = text.new_full((len(text), settings.length - text.shape[1]), model.shape.eos_token)
    return torch.cat((text, behind), dim=1)


class _Run:
    """The canvases of one batch. draft: the likeliest tokens, int64 [b, c]; settled: bool [b], rows that stay."""

    def __init__(self, model: Refiner, rows: int, settings: RenoiseSettings) -> None:
        assert model.shape.block is not None
        self._model, self._settings, self._size, self._rows = model, settings, model.shape.block, rows
        self._index = -1

    def begin(self, first: int) -> None:
        """A canvas of noise, `first` tokens behind the prompt."""
        rows, device = self._rows, self._model.device
        self._first, self._number = first, 0
        self.canvas = self._noise()
        self.draft, self.confidence = self.canvas, torch.zeros(self.canvas.shape, device=device)
        self._history = self.canvas.new_full((self._settings.stability_threshold, rows, self._size), -1)
        self._condition: Tensor | None = None
        self.settled = torch.zeros(rows, dtype=torch.bool, device=device)

    def step(self, temperature: float) -> None:
        """One pass; settled rows stay as they are."""
        model, settled = self._model, self.settled.unsqueeze(1)
        self._index, self._number = self._index + 1, self._number + 1
        logits = token_logits(model, model.refine(self.canvas, self._condition)) / temperature
        p = logits.softmax(-1)
        entropy = torch.special.entr(p).sum(-1)
        tokens = torch.where(self._accepted(entropy), drawn(p, self._uniform("token")), self._noise())
        draft = torch.where(settled, self.draft, logits.argmax(-1))
        self.canvas = torch.where(settled, self.canvas, tokens)
        self.confidence = torch.where(settled, self.confidence, p.amax(-1))
        condition = model.condition(logits)
        if self._condition is not None:
            condition = torch.where(settled.unsqueeze(2), self._condition, condition)
        self._condition, self.draft = condition, draft
        same = (self._history == draft).all(-1).all(0)
        self._history = torch.cat((self._history, draft.unsqueeze(0)))[1:]
        self.settled = self.settled | same & (entropy.mean(-1) < self._settings.confidence_threshold)

    def _accepted(self, entropy: Tensor) -> Tensor:
        """bool, like entropy [b, c]."""
        values, places = entropy.sort(dim=-1, stable=True)
        below = values.cumsum(-1) - values <= self._settings.entropy_bound
        return torch.zeros_like(below).scatter(-1, places, below)

    def _noise(self) -> Tensor:
        return (self._uniform("place") * self._model.shape.vocab).long()

    def _uniform(self, purpose: Purpose) -> Tensor:
        device = self._model.device
        seed, number = (torch.tensor(value, device=device) for value in (self._settings.seed, self._number))
        places = torch.arange(self._first, self._first + self._size, device=device).expand(self._rows, -1)
        return uniform(seed, number, torch.arange(self._rows, device=device), places, purpose)

    def decided(self) -> Decided:
        """The draft of the whole canvas, which each pass may change."""
        first, draft, confidence = self._first, self.draft, self.confidence
        length = self._settings.length

        def whole() -> SampleStep:
            found = []
            for part in (torch.ones_like(draft, dtype=torch.bool), draft, confidence):
                texts = part.new_zeros(len(part), max(length, first + self._size))
                texts[:, first : first + self._size] = part
                found.append(texts[:, :length])
            return SampleStep(self._index, *found)

        return Decided(self._index, min(length, first + self._size), whole)
