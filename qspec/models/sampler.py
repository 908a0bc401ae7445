"""Denoising text with any family's sampler: `sample` on token ids, `generate` on text.

Which sampler runs is what the settings' type says; `settings_for` gives the family's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from itertools import takewhile
from typing import Any, Protocol, TypedDict, TypeVar, Unpack, cast, runtime_checkable

import torch
from torch import Tensor

from qspec.errors import InputError, MachineError, UsageError
from qspec.models.decoder import Decoder
from qspec.models.engine import execution, first_line, refused, runner
from qspec.models.family import DecoderShape, SamplerKind
from qspec.models.samplers import block as block_causal
from qspec.models.samplers import dream, llada, renoise
from qspec.models.samplers.block import BlockRemasking, BlockSettings
from qspec.models.samplers.cached import Cache
from qspec.models.samplers.common import Denoiser, SampleStep
from qspec.models.samplers.dream import Alg, DreamSettings
from qspec.models.samplers.llada import Remasking, SamplerSettings
from qspec.models.samplers.renoise import RenoiseSettings
from qspec.models.samplers.run import Decided, Rows, Steps, Tally
from qspec.models.tokens import Encodes, Lists, encode, know_tokens

__all__ = [
    "BlockSettings",
    "Cache",
    "Denoiser",
    "DreamSettings",
    "SampleStep",
    "SamplerSettings",
    "Settings",
    "execution",
    "generate",
    "left_padded",
    "refused",
    "sample",
    "settings_for",
    "until",
]

Settings = SamplerSettings | DreamSettings | BlockSettings | RenoiseSettings
Prompt = TypeVar("Prompt", str, list[str])
KINDS: Mapping[SamplerKind, type[Settings]] = {
    "llada": SamplerSettings,
    "dream": DreamSettings,
    "block": BlockSettings,
    "renoise": RenoiseSettings,
}


class Tokenizer(Encodes, Lists, Protocol):
    """What `generate` asks of a tokenizer; every transformers tokenizer has it."""

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool) -> str: ...


@runtime_checkable
class Wrapped(Protocol):
    """A model of transformers around a decoder: `qspec.models.hf.DecoderModel`."""

    @property
    def decoder(self) -> Decoder: ...


class Sampling(TypedDict, total=False):
    """Settings by name; None and what is left out are the sampler's own.

    cfg, remasking, threshold, factor, logits_eos_inf, confidence_eos_eot_inf and stop are of LLaDA's sampler
    (`samplers.llada`); alg, alg_temp, top_p and top_k of Dream's; top_p, top_k, remasking, threshold, entropy_bound,
    edit_threshold, edit_steps, part and stop of that of block-causal models (`samplers.block`); entropy_bound, t_min,
    t_max, stability_threshold, confidence_threshold and stop of DiffusionGemma's (`samplers.renoise`). cache: what a
    block's steps do not compute again (`samplers.cached`), which changes the text; None, everything is computed.
    """

    temperature: float
    seed: int
    cache: Cache | None
    cfg: float | None
    remasking: Remasking | BlockRemasking | None
    threshold: float | None
    factor: float | None
    logits_eos_inf: bool | None
    confidence_eos_eot_inf: bool | None
    stop: bool | None
    alg: Alg | None
    alg_temp: float | None
    top_p: float | None
    top_k: int | None
    part: int | None
    entropy_bound: float | None
    edit_threshold: float | None
    edit_steps: int | None
    t_min: float | None
    t_max: float | None
    stability_threshold: int | None
    confidence_threshold: float | None


def settings_for(
    shape: DecoderShape, length: int, steps: int | None = None, block: int | None = None, **options: Any
) -> Settings:
    """The settings of the sampler that a model was published with. None: steps one a token, or as many as published for
    each canvas, others the sampler's own.

    Dream's sampler has no blocks and fills the whole length at once, and a block-causal model has blocks of its own: a
    recipe's `block` says nothing there.
    Errors: UsageError for an option that the sampler does not have, and for values that do not fit.
    """
    kind = KINDS[shape.sampler]
    given = {name: value for name, value in options.items() if value is not None}
    names = [field.name for field in fields(kind)]
    for name in given:
        if name not in names:
            own = ", ".join(one for one in names if one not in ("length", "steps"))
            raise UsageError(f"{name} is not a setting of the {shape.sampler} sampler", hint=f"it has {own}")
    if kind is RenoiseSettings and steps is None:
        assert shape.block is not None
        steps = renoise.PASSES * -(-length // shape.block)
    steps = length if steps is None else steps
    if kind is not SamplerSettings:
        return kind(length, steps, **given)
    return SamplerSettings(length, steps, length if block is None else block, **given)


@contextmanager
def machine_errors() -> Iterator[None]:
    """Raises MachineError where a GPU has no memory left, or does not answer any more."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        hint = "lower the length or the number of texts at once, or close other programs on the GPU"
        raise MachineError(f"the GPU is out of memory: {first_line(error)}", hint=hint) from error
    except RuntimeError as error:
        if not isinstance(error, torch.AcceleratorError) and "Triton Error [CUDA]" not in str(error):
            raise
        hint = "start again; if it comes back, nvidia-smi and the system's log name the cause"
        raise MachineError(f"the GPU failed: {first_line(error)}", hint=hint) from error


def sample(
    model: Denoiser,
    prompt_ids: Tensor,
    attention_mask: Tensor | None,
    settings: Settings,
    on_step: Callable[[SampleStep], None] | None = None,
    *,
    captured: bool = True,
) -> Tensor:
    """Fills `settings.length` tokens after each prompt: ids [b, p] -> [b, p + length], on the model's device.

    attention_mask [b, p]: 1 = real, 0 = padding on either side; None = all real. The same seed gives the
    same random numbers on every device, whatever the model predicts. captured: on a CUDA GPU steps are replayed as
    graphs (`models.engine`), which changes no bit. Errors: InputError for prompts that do not fit the model,
    NumericsError where its logits are not finite, MachineError where a GPU fails or has not enough memory.
    """
    steps = denoise(model, prompt_ids, attention_mask, settings, captured=captured)
    return finished(steps, None if on_step is None else lambda decided: on_step(decided.whole()))


@torch.no_grad()
def denoise(
    model: Denoiser, prompt_ids: Tensor, attention_mask: Tensor | None, settings: Settings, *, captured: bool = True
) -> Steps:
    """`sample` step by step."""
    with machine_errors():
        return (yield from _steps(model, prompt_ids, attention_mask, settings, captured))


def _steps(
    model: Denoiser, prompt_ids: Tensor, attention_mask: Tensor | None, settings: Settings, captured: bool
) -> Steps:
    _check_prompt(model.shape, prompt_ids, settings)
    if isinstance(settings, BlockSettings | RenoiseSettings):
        prompt_ids, decoder = prompt_ids.to(model.device, torch.int64), block_causal.decoder_of(model)
        kept = torch.ones_like(prompt_ids) if attention_mask is None else attention_mask.to(model.device)
        prompts = [ids[own != 0] for ids, own in zip(prompt_ids, kept, strict=True)]
        run = runner(decoder, captured=captured)
        if isinstance(settings, BlockSettings):
            texts = yield from block_causal.fill(decoder, run, prompts, settings)
        else:
            texts = yield from renoise.fill(decoder, run, prompts, settings)
        return torch.cat((prompt_ids, texts), dim=1)
    tail = torch.full((prompt_ids.shape[0], settings.length), model.shape.mask_token, device=model.device)
    ids = torch.cat((prompt_ids.to(model.device, torch.int64), tail), dim=1)
    real = None
    if attention_mask is not None:
        real = torch.cat((attention_mask.to(model.device) != 0, torch.ones_like(tail, dtype=torch.bool)), dim=1)
    rows, run = Rows(ids, real, prompt_ids.shape[1]), runner(model, captured=captured)
    if isinstance(settings, DreamSettings):
        return (yield from dream.fill(run, rows, settings))
    return (yield from llada.fill(run, rows, settings))


def finished(steps: Steps, on_step: Callable[[Decided], None] | None) -> Tensor:
    """The rows behind all steps."""
    while True:
        try:
            decided = next(steps)
        except StopIteration as end:
            rows: Tensor = end.value
            return rows
        if on_step is not None:
            on_step(decided)


def generate(
    model: Denoiser | Wrapped,
    tokenizer: Tokenizer,
    prompt: Prompt,
    length: int = 128,
    steps: int | None = None,
    block: int | None = None,
    **sampling: Unpack[Sampling],
) -> Prompt:
    """Continues a prompt, or several in one batch, and returns the new text up to the end-of-text token.

    model, tokenizer: of `qspec.load`, or both loaded by transformers after `import qspec.hf`, with the same text.
    steps None: one token a step. block: tokens that LLaDA's sampler denoises together; None, all of `length`, which is
    what Dream's does. sampling: settings of the model's own sampler; all but Dream's stop at the end of the text unless
    `stop` is False, which gives the same text. Errors: UsageError for one of another sampler and for settings that do
    not divide, InputError for a prompt that is no text or does not fit the model.
    """
    model = unwrapped(model, tokenizer)
    settings = generation_settings(model.shape, length, steps, block, sampling)
    return continue_text(model, tokenizer, prompt, settings)


def generation_settings(
    shape: DecoderShape, length: int, steps: int | None, block: int | None, sampling: Sampling
) -> Settings:
    """The settings of what `generate` is asked for; errors as there."""
    check_block(shape, length, block)
    sampling.setdefault("stop", stops(shape))
    return settings_for(shape, length, steps, block, **sampling)


def stops(shape: DecoderShape) -> bool | None:
    """`stop` where nobody says otherwise: True, and None of a sampler that fills the whole length at once."""
    return None if shape.sampler == "dream" else True


def unwrapped(model: Denoiser | Wrapped, tokenizer: Tokenizer) -> Denoiser:
    """What a sampler runs: of a model that transformers loaded its decoder, which from now on knows the tokenizer."""
    if isinstance(model, Wrapped):
        return know_tokens(model.decoder, tokenizer)
    return model


def check_block(shape: DecoderShape, length: int, block: int | None) -> None:
    """Errors: UsageError for a block, asked for by name, in a sampler without blocks or of blocks of another length."""
    if shape.block is not None and block not in (None, shape.block):
        raise UsageError(f"the model's blocks have {shape.block} tokens", hint="leave block out")
    if shape.sampler == "dream" and block not in (None, length):
        raise UsageError("the dream sampler has no blocks", hint="leave block out: the whole length is filled at once")


def continue_text(model: Denoiser, tokenizer: Tokenizer, prompt: Prompt, settings: Settings) -> Prompt:
    """`generate` with ready settings."""
    prompts = [prompt] if isinstance(prompt, str) else prompt
    if not prompts:
        return cast(Prompt, [])
    texts = continue_ids(model, tokenizer, encoded(model, tokenizer, prompts), settings)
    return texts[0] if isinstance(prompt, str) else texts


def encoded(model: Denoiser, tokenizer: Tokenizer, prompts: Sequence[str]) -> list[list[int]]:
    """Prompts as tokens. Errors: InputError for text that is none, or holds ids that the model does not have."""
    return [encode(tokenizer, text, model.shape.vocab, special=True) for text in prompts]


def continue_ids(
    model: Denoiser,
    tokenizer: Tokenizer,
    prompts: Sequence[Sequence[int]],
    settings: Settings,
    tally: Tally | None = None,
) -> list[str]:
    """The new texts behind prompts of tokens, in one batch, each up to the token that ends it."""
    return decoded(model, tokenizer, new_tokens(model, prompts, settings, tally))


def decoded(model: Denoiser, tokenizer: Tokenizer, tokens: Tensor) -> list[str]:
    """Rows of new tokens as texts, each up to the token that ends it."""
    rows = tokens.tolist()
    return [tokenizer.decode(until(row, *model.shape.ends), skip_special_tokens=True) for row in rows]


def new_tokens(
    model: Denoiser, prompts: Sequence[Sequence[int]], settings: Settings, tally: Tally | None = None
) -> Tensor:
    """int64 [rows, length] behind prompts of tokens, in one batch."""
    ids, mask = left_padded(prompts, model.shape.pad_token)
    rows = finished(denoise(model, ids, mask, settings), None if tally is None else tally.add)
    return rows[:, ids.shape[1] :]


def one_token_a_step(settings: Settings) -> Settings:
    """The same sampler without approximation: as many steps as tokens, none of several commits; of one that renoises
    canvases, all passes over each."""
    if isinstance(settings, DreamSettings):
        return replace(settings, steps=settings.length)
    if isinstance(settings, BlockSettings):
        return replace(settings, steps=settings.length, threshold=None, entropy_bound=None)
    if isinstance(settings, RenoiseSettings):
        return replace(settings, confidence_threshold=0.0)
    return replace(settings, steps=settings.length, threshold=None, factor=None)


def agreement(tokens: Tensor, reference: Tensor, *ends: int) -> list[float]:
    """Share of equal tokens in each row, int64 [rows, length] both, up to and with the first end of the reference."""
    counted = through_end(reference, ends)
    shares: list[float] = (((tokens == reference) & counted).sum(1).double() / counted.sum(1)).tolist()
    return shares


def through_end(tokens: Tensor, ends: Sequence[int]) -> Tensor:
    """bool [rows, length]: positions up to and including each row's first end of text."""
    ended = torch.isin(tokens, torch.tensor(ends, device=tokens.device)).long()
    return ended.cumsum(1) - ended == 0


def left_padded(rows: Sequence[Sequence[int]], pad: int) -> tuple[Tensor, Tensor]:
    """Token lists of any lengths -> ids and attention mask, int64 [rows, longest], padding on the left."""
    longest = max(len(row) for row in rows)
    ids = torch.tensor([[pad] * (longest - len(row)) + list(row) for row in rows], dtype=torch.int64)
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows], dtype=torch.int64)
    return ids, mask


def until(tokens: Sequence[int], *ends: int) -> list[int]:
    """The tokens before the first of the `ends`."""
    return list(takewhile(lambda token: token not in ends, tokens))


def _check_prompt(shape: DecoderShape, prompt_ids: Tensor, settings: Settings) -> None:
    rows, prompt = prompt_ids.shape
    if prompt + settings.length > shape.max_length:
        what = f"prompt of {prompt} and length {settings.length} exceed the model's {shape.max_length} tokens"
        raise InputError(what, hint="shorten the prompt or the length")
    if rows * prompt and not 0 <= int(prompt_ids.min()) <= int(prompt_ids.max()) < shape.vocab:
        what = f"the prompt holds token {int(prompt_ids.max())}; the model has {shape.vocab}"
        raise InputError(what, hint="the tokenizer belongs to another model")
