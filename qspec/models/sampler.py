"""LLaDA's sampler: semi-autoregressive denoising with remasking (arXiv 2502.09992, section 2.4, appendix B).

The canvas is the prompt followed by `length` mask tokens, filled in blocks from left to right. A block of B
tokens has S steps; step i commits B // S tokens, and one more while i < B mod S. Each step is one full
forward over the canvas; for each position of the block that is still a mask

    x0         = argmax l                                   at temperature T = 0
                 argmax exp(l) / (-log u)^T, u ~ U(0, 1)    otherwise, in float64 (arXiv 2409.02908)
    confidence = softmax(l)[x0]                             remasking "low_confidence"
                 u' ~ U(0, 1)                               remasking "random"

and the most confident positions of each row are committed; the rest stay masks. With guidance s > 0,
l = un + (s + 1)(cond - un), where `un` are the logits with the prompt masked too (arXiv 2410.18514).

Logits are needed for the current block only, and are turned to float32 before guidance and softmax whatever
the model computes in: ties of 16-bit confidences break differently for a quantized model and its original.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeVar, cast, get_args

import torch
from torch import Tensor

from qspec.errors import InputError, NumericsError, UsageError
from qspec.models.family import DecoderShape

Remasking = Literal["low_confidence", "random"]
Prompt = TypeVar("Prompt", str, list[str])


class Denoiser(Protocol):
    """What the sampler asks of a model; `Decoder` has it."""

    @property
    def shape(self) -> DecoderShape: ...

    @property
    def device(self) -> torch.device: ...

    def hidden(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor: ...

    def finish(self, x: Tensor) -> Tensor: ...


class Tokenizer(Protocol):
    """What `generate` asks of a tokenizer; every transformers tokenizer has it."""

    def __call__(self, text: str) -> Mapping[str, Any]: ...

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool) -> str: ...


@dataclass(frozen=True)
class SamplerSettings:
    """length: tokens to generate. steps: forwards in all. block: tokens of one block. cfg: guidance scale s.

    Errors: UsageError unless block divides length, the number of blocks divides steps, and steps <= length.
    """

    length: int
    steps: int
    block: int
    temperature: float = 0.0
    remasking: Remasking = "low_confidence"
    cfg: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("length", "steps", "block"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.length % self.block:
            hint = f"try block {_nearest_divisor(self.length, self.block)}"
            raise UsageError(f"length {self.length} is not a multiple of block {self.block}", hint=hint)
        if self.steps % self.blocks:
            what = f"steps {self.steps} is not a multiple of the {self.blocks} blocks"
            near = max(self.blocks, self.steps // self.blocks * self.blocks)
            raise UsageError(what, hint=f"try steps {near}: every block takes the same number of steps")
        if self.steps > self.length:
            what = f"steps {self.steps} is more than length {self.length}"
            raise UsageError(what, hint=f"every step commits a token, so {self.length} steps are enough")
        if self.remasking not in get_args(Remasking):
            hint = f"choose one of {', '.join(get_args(Remasking))}"
            raise UsageError(f"unknown remasking {self.remasking!r}", hint=hint)
        for name in ("temperature", "cfg"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise UsageError(f"{name} is {getattr(self, name)}; it must be a finite number from 0 on")
        if not 0 <= self.seed < 1 << 63:
            raise UsageError(f"seed is {self.seed}; it must lie in 0..{(1 << 63) - 1}")

    @property
    def blocks(self) -> int:
        return self.length // self.block

    def commits(self) -> tuple[int, ...]:
        """Tokens that each step of one block commits; they add up to the block."""
        base, extra = divmod(self.block, self.steps // self.blocks)
        return tuple(base + (step < extra) for step in range(self.steps // self.blocks))


@dataclass(frozen=True)
class SampleStep:
    """What one step decided: `tokens` at `positions` of the generated text, with `confidence`; [b, k] each.

    index: 0 .. steps - 1.
    """

    index: int
    positions: Tensor
    tokens: Tensor
    confidence: Tensor


@torch.no_grad()
def sample(
    model: Denoiser,
    prompt_ids: Tensor,
    attention_mask: Tensor | None,
    settings: SamplerSettings,
    on_step: Callable[[SampleStep], None] | None = None,
) -> Tensor:
    """Fills `settings.length` tokens after each prompt: ids [b, p] -> [b, p + length], on the model's device.

    attention_mask [b, p]: 1 = real, 0 = padding on either side; None = all real. The same seed gives the
    same random numbers on every device, whatever the model predicts. Errors: InputError for prompts that do
    not fit the model, NumericsError where its logits are not finite.
    """
    _check_prompt(model.shape, prompt_ids, settings)
    device, prompt = model.device, prompt_ids.shape[1]
    generator = torch.Generator().manual_seed(settings.seed)
    tail = torch.full((prompt_ids.shape[0], settings.length), model.shape.mask_token, device=device)
    canvas = torch.cat((prompt_ids.to(device, torch.int64), tail), dim=1)
    if attention_mask is not None:
        attention_mask = torch.cat((attention_mask.to(device), torch.ones_like(tail)), dim=1)
    index = 0
    for first in range(prompt, canvas.shape[1], settings.block):
        block = canvas[:, first : first + settings.block]  # a view: writing to it fills the canvas
        for count in settings.commits():
            logits = _block_logits(model, canvas, attention_mask, prompt, first, settings)
            positions, step = _commit(block, logits, count, settings, generator, model.shape.mask_token)
            if on_step is not None:
                on_step(SampleStep(index, positions + (first - prompt), *step))
            index += 1
    return canvas


def generate(
    model: Denoiser,
    tokenizer: Tokenizer,
    prompt: Prompt,
    length: int = 128,
    steps: int | None = None,
    block: int | None = None,
    temperature: float = 0.0,
    cfg: float = 0.0,
    remasking: Remasking = "low_confidence",
    seed: int = 0,
    on_step: Callable[[SampleStep], None] | None = None,
) -> Prompt:
    """Continues a prompt, or several in one batch, and returns the new text up to the end-of-text token.

    steps None: one token a step. block None: one block of `length`. Errors: UsageError for settings that do
    not divide, InputError for a prompt that is no text or does not fit the model.
    """
    steps = length if steps is None else steps
    block = length if block is None else block
    settings = SamplerSettings(length, steps, block, temperature, remasking, cfg, seed)
    prompts = [prompt] if isinstance(prompt, str) else prompt
    if not prompts:
        return cast(Prompt, [])
    ids, mask = left_padded([_tokens(tokenizer, text) for text in prompts], model.shape.pad_token)
    rows = sample(model, ids, mask, settings, on_step)[:, ids.shape[1] :].tolist()
    texts = [tokenizer.decode(until(row, model.shape.eos_token), skip_special_tokens=True) for row in rows]
    return texts[0] if isinstance(prompt, str) else texts


def _tokens(tokenizer: Tokenizer, text: str) -> Sequence[int]:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"the prompt is not valid text: {error.reason}", hint="give it in UTF-8") from error
    return cast(Sequence[int], tokenizer(text)["input_ids"])


def left_padded(rows: Sequence[Sequence[int]], pad: int) -> tuple[Tensor, Tensor]:
    """Token lists of any lengths -> ids and attention mask, int64 [rows, longest], padding on the left."""
    longest = max(len(row) for row in rows)
    ids = torch.tensor([[pad] * (longest - len(row)) + list(row) for row in rows], dtype=torch.int64)
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows], dtype=torch.int64)
    return ids, mask


def until(tokens: Sequence[int], end: int) -> list[int]:
    """The tokens before the first `end`."""
    row = list(tokens)
    return row[: row.index(end)] if end in row else row


def _block_logits(
    model: Denoiser,
    canvas: Tensor,
    attention_mask: Tensor | None,
    prompt: int,
    first: int,
    settings: SamplerSettings,
) -> Tensor:
    """float32 logits [b, block, vocab] of the block that starts at `first`, with guidance."""
    window = slice(first, first + settings.block)
    if settings.cfg == 0:
        return model.finish(model.hidden(canvas, attention_mask)[:, window]).float()
    unconditional = canvas.clone()
    unconditional[:, :prompt] = model.shape.mask_token
    both = torch.cat((canvas, unconditional))
    mask = None if attention_mask is None else torch.cat((attention_mask, attention_mask))
    logits, unguided = model.finish(model.hidden(both, mask)[:, window]).float().chunk(2)
    return unguided + (settings.cfg + 1) * (logits - unguided)


def _commit(
    block: Tensor,
    logits: Tensor,
    count: int,
    settings: SamplerSettings,
    generator: torch.Generator,
    mask: int,
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Fills the `count` most confident masks of each row of block [b, B] in place.

    Returns their places in the block, and (tokens, confidence) there, each [b, count].
    """
    if not bool(logits.isfinite().all()):
        raise NumericsError("the model's logits are NaN or Inf", hint="look for broken scales in the artifact")
    predicted = _choose(logits, settings.temperature, generator)
    confidence = _confidence(logits, predicted, settings.remasking, generator)
    confidence = confidence.masked_fill(block != mask, -torch.inf)
    kept, positions = confidence.topk(count, dim=-1)
    tokens = predicted.gather(-1, positions)
    block.scatter_(-1, positions, tokens)
    return positions, (tokens, kept)


def _choose(logits: Tensor, temperature: float, generator: torch.Generator) -> Tensor:
    """x0 [b, B]; exp(l) / (-log u)^T is replaced by its logarithm: the same argmax, and no overflow."""
    if temperature == 0:
        return logits.argmax(-1)
    noise = torch.rand(logits.shape, dtype=torch.float64, generator=generator).to(logits.device)
    return (logits.double() - temperature * (-noise.log()).log()).argmax(-1)


def _confidence(logits: Tensor, predicted: Tensor, remasking: Remasking, generator: torch.Generator) -> Tensor:
    """float32 [b, B]: the predicted token's probability, or a random number."""
    if remasking == "random":
        return torch.rand(predicted.shape, generator=generator).to(logits.device)
    return logits.softmax(-1).gather(-1, predicted.unsqueeze(-1)).squeeze(-1)


def _check_prompt(shape: DecoderShape, prompt_ids: Tensor, settings: SamplerSettings) -> None:
    rows, prompt = prompt_ids.shape
    if prompt + settings.length > shape.max_length:
        what = f"prompt of {prompt} and length {settings.length} exceed the model's {shape.max_length} tokens"
        raise InputError(what, hint="shorten the prompt or the length")
    if rows * prompt and not 0 <= int(prompt_ids.min()) <= int(prompt_ids.max()) < shape.vocab:
        what = f"the prompt holds token {int(prompt_ids.max())}; the model has {shape.vocab}"
        raise InputError(what, hint="the tokenizer belongs to another model")


def _nearest_divisor(length: int, block: int) -> int:
    return max(size for size in range(1, min(block, length) + 1) if length % size == 0)
