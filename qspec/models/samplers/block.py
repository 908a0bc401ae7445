"""The sampler of block-causal models (SDAR, arXiv 2510.06303; Fast-dLLM v2, arXiv 2509.26328).

A text is cut into blocks of n = `shape.block` tokens, counted from its first one. No token sees a later block, so that
keys and values of finished blocks are exactly what a pass over the whole text would compute: whole blocks of the
prompt are computed in one pass, and kept; a block is denoised by passes over itself alone, which read what is kept;
one more pass over the finished block keeps its own. A pass over a block commits, of the masks of each row,

    the `share` most confident ones, share = length / steps, and
    every one whose confidence is above `threshold`

The confidence of a token is its probability, after temperature, top-p and top-k; the mask token has none, so that a
block ends. With `part`, the masks of the first `part` tokens of a block that hold any come first (Fast-dLLM v2's small
blocks, 8 of 32 there). Where logits are shifted, the first token of a block is the likeliest behind the block before
it, by the pass that kept that: no pass of the block's own predicts it.

The last block is denoised whole; what of it lies behind `length` tokens is dropped. Rows of a batch are moved by whole
blocks until their prompts end in the same one; the padding before them is seen by no token.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count

import torch
from torch import Tensor

from qspec.errors import UsageError
from qspec.models.decoder import Decoder, KeyValues
from qspec.models.samplers.common import (
    Around,
    Denoiser,
    SampleStep,
    check_finite,
    check_positive,
    check_seed,
    most_confident,
    token_logits,
)
from qspec.models.samplers.dream import drawn, probabilities
from qspec.models.samplers.noise import uniform
from qspec.models.samplers.run import Decided, Steps


@dataclass(frozen=True)
class BlockSettings:
    """length: tokens to generate. steps: passes that commit them, where each commits its share and no more. stop: once
    every row has a token that ends the text, the rest is filled with the end-of-text token, and not computed.

    Errors: UsageError unless steps divides length, and for values out of their range.
    """

    length: int
    steps: int
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int | None = None
    threshold: float | None = None
    part: int | None = None
    seed: int = 0
    stop: bool = False

    def __post_init__(self) -> None:
        check_positive(length=self.length, steps=self.steps)
        if self.length % self.steps:
            near = max(steps for steps in range(1, min(self.steps, self.length) + 1) if self.length % steps == 0)
            what = f"length {self.length} is not a multiple of steps {self.steps}"
            raise UsageError(what, hint=f"try steps {near}: every step commits the same number of tokens")
        check_finite(temperature=self.temperature)
        check_seed(self.seed)
        if not 0 < self.top_p <= 1:
            raise UsageError(f"top_p is {self.top_p}; it must lie above 0 and up to 1")
        if self.threshold is not None and not 0 < self.threshold <= 1:
            raise UsageError(f"threshold is {self.threshold}; it must lie above 0 and up to 1")
        for name in ("top_k", "part"):
            if getattr(self, name) is not None:
                check_positive(**{name: getattr(self, name)})

    @property
    def share(self) -> int:
        """Masks that a pass commits at least."""
        return self.length // self.steps


class Rows:
    """The rows of a batch on one canvas: ids int64 [b, t], real bool alike; t is a whole number of blocks.

    first: the place of the block in which all prompts end. texts: where each row's new tokens begin, int64 [b].
    """

    def __init__(self, prompts: Sequence[Tensor], length: int, block: int, mask: int) -> None:
        self.first = max(len(prompt) // block for prompt in prompts) * block
        begins = [self.first - len(prompt) // block * block for prompt in prompts]
        self.texts = torch.tensor([begin + len(prompt) for begin, prompt in zip(begins, prompts, strict=True)])
        stop = -(-(int(self.texts.max()) + length) // block) * block
        device = prompts[0].device
        self.ids = torch.full((len(prompts), stop), mask, device=device)
        self.real = torch.ones(self.ids.shape, dtype=torch.bool, device=device)
        for row, (begin, prompt) in enumerate(zip(begins, prompts, strict=True)):
            self.ids[row, begin : begin + len(prompt)] = prompt
            self.real[row, :begin] = False

    def places(self, length: int) -> Tensor:
        """int64 [b, length]: of each row's new tokens."""
        return (self.texts[:, None] + torch.arange(length)).to(self.ids.device)


def decoder_of(model: Denoiser) -> Decoder:
    """The decoder itself. Errors: UsageError for a model that keeps no keys and values."""
    while isinstance(model, Around):
        model = model.model
    if not isinstance(model, Decoder):
        raise UsageError(f"a {type(model).__name__} keeps no keys and values, which this sampler needs")
    return model


def fill(model: Denoiser, prompts: Sequence[Tensor], settings: BlockSettings) -> Steps:
    """Denoises the new tokens int64 [b, length] behind prompts, int64 [tokens] each, step by step.

    Errors: UsageError for a share or a part larger than a block, NumericsError where logits are not finite.
    """
    run = _Run(decoder_of(model), prompts, settings)
    size = run.block
    if run.rows.first:
        run.keep(slice(0, run.rows.first))
    for start in range(run.rows.first, run.rows.ids.shape[1], size):
        window = slice(start, start + size)
        yield from run.commit_first(start)
        for number in count(start - run.rows.first):
            if not run.masks(window):
                break
            yield run.step(window, number)
        if settings.stop and run.ended(window.stop):
            break
        run.keep(window)
    return run.text()


class _Run:
    """One batch on its way."""

    def __init__(self, model: Decoder, prompts: Sequence[Tensor], settings: BlockSettings) -> None:
        assert model.shape.block is not None
        self.model, self.settings, self.block = model, settings, model.shape.block
        for name, tokens in (("length / steps", settings.share), ("part", settings.part or 1)):
            if tokens > self.block:
                raise UsageError(f"{name} is {tokens}, more than the {self.block} tokens of the model's blocks")
        self.rows = Rows(prompts, settings.length, self.block, model.shape.mask_token)
        self._kept = model.window(*self.rows.ids.shape).kept
        self._before: Tensor | None = None  # [b, d]: the state of the last token that is kept
        self._index = 0

    def _states(self, tokens: slice) -> Tensor:
        """x [b, n, d] of these tokens, whose keys and values are kept; they read those before them."""
        context = self.model.blocks_context(self.rows.real, tokens)
        seen = tuple(KeyValues(*(part[:, :, : tokens.stop] for part in one)) for one in self._kept)
        return self.model.through(self.rows.ids[:, tokens], context, seen)

    def keep(self, tokens: slice) -> None:
        """The pass over whole blocks without masks."""
        self._before = self._states(tokens)[:, -1]

    def masks(self, window: slice) -> bool:
        return bool((self.rows.ids[:, window] == self.model.shape.mask_token).any())

    def commit_first(self, start: int) -> Iterator[Decided]:
        """Of a shifted model, the token behind what is kept."""
        if not self.model.shape.shift or self._before is None:
            return
        p = self._logits(self._before).softmax(-1)
        tokens = p.argmax(-1, keepdim=True)
        chosen = self.rows.ids[:, start : start + 1] == self.model.shape.mask_token
        yield replace(self._commit(slice(start, start + 1), chosen, tokens, p.gather(-1, tokens)), passes=0)

    def step(self, window: slice, number: int) -> Decided:
        """A pass over a block with masks. number: which its random numbers follow from, whatever other rows need."""
        own, settings = self.rows.ids[:, window], self.settings
        x = self._states(window)
        if self.model.shape.shift:
            first = x[:, :1] if self._before is None else self._before.unsqueeze(1)
            x = torch.cat((first, x[:, :-1]), dim=1)
        logits = self._logits(x)
        p = probabilities(logits, settings.temperature, settings.top_p, settings.top_k)
        tokens = drawn(p, self._uniform(window, number)) if settings.temperature > 0 else p.argmax(-1)
        confidence = p.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
        masked = self._first_part(own == self.model.shape.mask_token)
        left = confidence.masked_fill(~masked, -torch.inf)
        chosen = most_confident(left, settings.share)
        if settings.threshold is not None:
            chosen |= left > settings.threshold
        decided = self._commit(window, chosen, tokens, confidence)
        self._index += 1
        return decided

    def _uniform(self, window: slice, number: int) -> Tensor:
        device, texts = self.rows.ids.device, self.rows.texts
        places = (torch.arange(window.start, window.stop) - texts[:, None]).to(device)
        seed, step = (torch.tensor(value, device=device) for value in (self.settings.seed, number))
        return uniform(seed, step, torch.arange(len(texts), device=device), places, "token")

    def _logits(self, x: Tensor) -> Tensor:
        logits = token_logits(self.model, x)
        logits[..., self.model.shape.mask_token] = torch.finfo(torch.float32).min
        return logits

    def _first_part(self, masked: Tensor) -> Tensor:
        """Of masks bool [b, n] those of each row's first part with any."""
        if self.settings.part is None:
            return masked
        part = torch.arange(masked.shape[1], device=masked.device) // self.settings.part
        first = torch.where(masked, part, masked.shape[1]).amin(1, keepdim=True)
        return masked & (part == first)

    def _commit(self, window: slice, chosen: Tensor, tokens: Tensor, confidence: Tensor) -> Decided:
        """Writes the tokens [b, n] that are chosen."""
        own, length = self.rows.ids[:, window], self.settings.length
        own.copy_(torch.where(chosen, tokens, own))
        index = min(self._index, self.settings.steps - 1)

        def whole() -> SampleStep:
            parts = []
            for part in (chosen, tokens, confidence):
                canvas = part.new_zeros(self.rows.ids.shape)
                canvas[:, window] = part
                parts.append(canvas.gather(1, self.rows.places(length)))
            return SampleStep(index, *parts)

        return Decided(index, min(length, window.stop - int(self.rows.texts.min())), whole)

    def ended(self, stop: int) -> bool:
        """Whether every row's text ends before the place `stop`; then all behind it becomes the end-of-text token."""
        ends = torch.tensor(self.model.shape.ends, device=self.rows.ids.device)
        behind = torch.arange(stop, device=ends.device) >= self.rows.texts.to(ends.device)[:, None]
        if not bool((torch.isin(self.rows.ids[:, :stop], ends) & behind).any(1).all()):
            return False
        self.rows.ids[:, stop:] = self.model.shape.eos_token
        return True

    def text(self) -> Tensor:
        return self.rows.ids.gather(1, self.rows.places(self.settings.length))
