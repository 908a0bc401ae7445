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

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from qspec.errors import UsageError
from qspec.models.decoder import Decoder
from qspec.models.engine import Runner
from qspec.models.samplers.common import (
    SampleStep,
    check_finite,
    check_positive,
    check_seed,
    not_finite,
    token_logits,
)
from qspec.models.samplers.dream import drawn
from qspec.models.samplers.noise_canvas import NoiseCanvas, NoiseShape
from qspec.models.samplers.run import Decided, Steps

PASSES = 48  # over a canvas, at most, as published


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

    @property
    def key(self) -> Hashable:
        """All that a pass depends on besides the canvas."""
        return self.entropy_bound, self.confidence_threshold


def fill(model: Decoder, runner: Runner, prompts: Sequence[Tensor], settings: RenoiseSettings) -> Steps:
    """Denoises the new tokens int64 [b, length] behind prompts, int64 [tokens] each, pass by pass.

    Errors: UsageError for steps that canvases do not share, NumericsError where logits are not finite.
    """
    run = _Run(model, runner, prompts, settings)
    size = run.canvas.size
    temperatures = settings.temperatures(size)
    if run.prompt:
        run.read(0, run.prompt)
    for first in range(0, settings.length, size):
        run.canvas.begin(run.prompt + first)
        for temperature in temperatures:
            decided, going = run.step(first, temperature)
            yield decided
            if not going:
                break
        if run.leave(first):
            break
        if first + size < settings.length:
            run.read(run.prompt + first, size)
    return run.text()


class _Run:
    """One batch. prompt: how long the longest one is; texts begin behind it."""

    def __init__(self, model: Decoder, runner: Runner, prompts: Sequence[Tensor], settings: RenoiseSettings) -> None:
        self.model, self.settings, self.prompt = model, settings, max(map(len, prompts))
        self._runner, self._index = runner, -1
        self.canvas = self._place(prompts)
        self._text = self.canvas.ids[:, self.prompt : self.prompt + settings.length]
        self._ended = torch.zeros(len(prompts), dtype=torch.bool, device=model.device)

    def _place(self, prompts: Sequence[Tensor]) -> NoiseCanvas:
        """Rows with padding in front, so that all prompts end in one place."""
        model, settings, rows = self.model, self.settings, len(prompts)
        assert model.shape.block is not None
        size = self.prompt + -(-settings.length // model.shape.block) * model.shape.block
        canvas = self._runner.canvas(NoiseShape(rows, self._runner.bucket(size), settings.stability_threshold))
        self._runner.keep(canvas)
        ids = torch.full((rows, size), model.shape.eos_token, device=model.device)
        for row, prompt in enumerate(prompts):
            ids[row, self.prompt - len(prompt) : self.prompt] = prompt
        begins = torch.tensor([self.prompt - len(prompt) for prompt in prompts])
        canvas.place(ids, begins, range(rows), settings.seed)
        canvas.text.fill_(self.prompt)
        canvas.start()
        return canvas

    def _seen(self, stop: int) -> int:
        """Keys that a pass reads, at least those before `stop`."""
        return min(self._runner.bucket(stop), self.canvas.shape.length)

    def read(self, first: int, count: int) -> None:
        """A pass over so much of the finished text, and what lies behind it, whose keys are written again."""
        canvas, seen = self.canvas, self._seen(first + count)
        tokens = seen if first == 0 else count
        canvas.move(first)
        self._runner.run(canvas, ("read", tokens, seen), partial(_read, self.model, canvas, tokens, seen))

    def step(self, first: int, temperature: float) -> tuple[Decided, bool]:
        """A pass over the canvas at the text's `first`, and whether another one is needed.

        Errors: NumericsError where the logits were not finite.
        """
        canvas, seen = self.canvas, self._seen(self.prompt + first + self.canvas.size)
        canvas.number.add_(1)
        canvas.temperature.fill_(temperature)
        self._index += 1
        compute = partial(_step, self.model, self.settings, canvas, seen)
        draft, confidence, state = self._runner.run(canvas, (self.settings.key, seen), compute)
        finite, settled = state.tolist()
        if not finite:
            raise not_finite(self.model, canvas.dtype)
        return self._decided(first, draft, confidence), not settled

    def leave(self, first: int) -> bool:
        """Puts the canvas, which is settled or had all its passes, into the texts that are not ended. Returns whether
        all are."""
        draft, shape = self.canvas.draft, self.model.shape
        own = self._text[:, first : first + self.canvas.size]
        settled = draft[:, : own.shape[1]]
        own.copy_(torch.where(self._ended.unsqueeze(1), shape.eos_token, settled))
        if self.settings.stop:
            self._ended |= torch.isin(draft, torch.tensor(shape.ends, device=draft.device)).any(1)
        return self.settings.stop and bool(self._ended.all())

    def text(self) -> Tensor:
        return self._text.clone()

    def _decided(self, first: int, draft: Tensor, confidence: Tensor) -> Decided:
        """The draft of the whole canvas, which each pass may change."""
        index, length = self._index, self.settings.length
        through = min(length, first + draft.shape[1])

        def whole() -> SampleStep:
            found = []
            for part in (torch.ones_like(draft, dtype=torch.bool), draft, confidence):
                texts = part.new_zeros(len(part), length)
                texts[:, first:through] = part[:, : through - first]
                found.append(texts)
            return SampleStep(index, *found)

        return Decided(index, through, whole)


def _read(model: Decoder, canvas: NoiseCanvas, tokens: int, seen: int) -> tuple[Tensor, ...]:
    canvas.read(model, tokens, seen)
    return ()


def _step(model: Decoder, settings: RenoiseSettings, canvas: NoiseCanvas, seen: int) -> tuple[Tensor, ...]:
    """The draft [b, c], its probabilities, and whether logits were finite and all rows are settled, bool [2]."""
    logits = token_logits(model, canvas.states(model, seen), canvas.finite) / canvas.temperature
    p = logits.softmax(-1)
    entropy = torch.special.entr(p).sum(-1)
    tokens = torch.where(_accepted(settings, entropy), drawn(p, canvas.uniform("token")), canvas.noise())
    sure = entropy.mean(-1) < settings.confidence_threshold
    canvas.settle(logits.argmax(-1), p.amax(-1), model.told(logits), tokens, sure)
    return canvas.draft, canvas.confidence, torch.stack((canvas.finite, canvas.settled.all()))


def _accepted(settings: RenoiseSettings, entropy: Tensor) -> Tensor:
    """bool, like entropy [b, c]."""
    values, places = entropy.sort(dim=-1, stable=True)
    below = values.cumsum(-1) - values <= settings.entropy_bound
    return torch.zeros_like(below).scatter(-1, places, below)
