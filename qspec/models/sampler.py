"""Denoising text with any family's sampler: `sample` on token ids, `generate` on text.

Which sampler runs is what the settings' type says; `settings_for` gives the family's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from itertools import takewhile
from typing import Any, Protocol, TypedDict, TypeVar, Unpack, cast, runtime_checkable

import torch
from torch import Tensor

from qspec.errors import InputError, MachineError, UsageError
from qspec.models.decoder import Decoder
from qspec.models.engine import execution, first_line, refused, runner
from qspec.models.family import DecoderShape, SamplerKind
from qspec.models.samplers import block as block_causal
from qspec.models.samplers import dream, llada
from qspec.models.samplers.block import BlockSettings
from qspec.models.samplers.cached import Cache
from qspec.models.samplers.common import Denoiser, SampleStep
from qspec.models.samplers.dream import Alg, DreamSettings
from qspec.models.samplers.llada import Remasking, SamplerSettings
from qspec.models.samplers.run import Rows
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

Settings = SamplerSettings | DreamSettings | BlockSettings
Prompt = TypeVar("Prompt", str, list[str])
KINDS: Mapping[SamplerKind, type[Settings]] = {
    "llada": SamplerSettings,
    "dream": DreamSettings,
    "block": BlockSettings,
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
    (`samplers.llada`); alg, alg_temp, top_p and top_k of Dream's; top_p, top_k, threshold, part and stop of that of
    block-causal models (`samplers.block`). cache: what a block's steps do not compute again
    (`samplers.cached`), which changes the text; None, everything is computed.
    """

    temperature: float
    seed: int
    cache: Cache | None
    cfg: float | None
    remasking: Remasking | None
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


def settings_for(
    shape: DecoderShape, length: int, steps: int | None = None, block: int | None = None, **options: Any
) -> Settings:
    """The settings of the sampler that a model was published with. None: steps one a token, others the sampler's own.

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


@torch.no_grad()
@machine_errors()
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
    _check_prompt(model.shape, prompt_ids, settings)
    if isinstance(settings, BlockSettings):
        prompt_ids = prompt_ids.to(model.device, torch.int64)
        kept = torch.ones_like(prompt_ids) if attention_mask is None else attention_mask.to(model.device)
        prompts = [ids[own != 0] for ids, own in zip(prompt_ids, kept, strict=True)]
        return torch.cat((prompt_ids, block_causal.fill(model, prompts, settings, on_step)), dim=1)
    tail = torch.full((prompt_ids.shape[0], settings.length), model.shape.mask_token, device=model.device)
    ids = torch.cat((prompt_ids.to(model.device, torch.int64), tail), dim=1)
    real = None
    if attention_mask is not None:
        real = torch.cat((attention_mask.to(model.device) != 0, torch.ones_like(tail, dtype=torch.bool)), dim=1)
    rows, run = Rows(ids, real, prompt_ids.shape[1]), runner(model, captured=captured)
    if isinstance(settings, DreamSettings):
        return dream.fill(run, rows, settings, on_step)
    return llada.fill(run, rows, settings, on_step)


def generate(
    model: Denoiser | Wrapped,
    tokenizer: Tokenizer,
    prompt: Prompt,
    length: int = 128,
    steps: int | None = None,
    block: int | None = None,
    *,
    on_step: Callable[[SampleStep], None] | None = None,
    **sampling: Unpack[Sampling],
) -> Prompt:
    """Continues a prompt, or several in one batch, and returns the new text up to the end-of-text token.

    model, tokenizer: of `qspec.load`, or both loaded by transformers after `import qspec.hf`, with the same text.
    steps None: one token a step. block: tokens that LLaDA's sampler denoises together; None, all of `length`, which is
    what Dream's does. sampling: settings of the model's own sampler; all but Dream's stop at the end of the text unless
    `stop` is False, which gives the same text. Errors: UsageError for one of another sampler and for settings that do
    not divide, InputError for a prompt that is no text or does not fit the model.
    """
    model = _unwrapped(model, tokenizer)
    check_block(model.shape, length, block)
    if model.shape.sampler != "dream":
        sampling.setdefault("stop", True)
    settings = settings_for(model.shape, length, steps, block, **sampling)
    return continue_text(model, tokenizer, prompt, settings, on_step)


def _unwrapped(model: Denoiser | Wrapped, tokenizer: Tokenizer) -> Denoiser:
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


def continue_text(
    model: Denoiser,
    tokenizer: Tokenizer,
    prompt: Prompt,
    settings: Settings,
    on_step: Callable[[SampleStep], None] | None = None,
) -> Prompt:
    """`generate` with ready settings."""
    prompts = [prompt] if isinstance(prompt, str) else prompt
    if not prompts:
        return cast(Prompt, [])
    encoded = [encode(tokenizer, text, model.shape.vocab, special=True) for text in prompts]
    texts = continue_ids(model, tokenizer, encoded, settings, on_step)
    return texts[0] if isinstance(prompt, str) else texts


def continue_ids(
    model: Denoiser,
    tokenizer: Tokenizer,
    prompts: Sequence[Sequence[int]],
    settings: Settings,
    on_step: Callable[[SampleStep], None] | None = None,
) -> list[str]:
    """The new texts behind prompts of tokens, in one batch, each up to the token that ends it."""
    ids, mask = left_padded(prompts, model.shape.pad_token)
    rows = sample(model, ids, mask, settings, on_step)[:, ids.shape[1] :].tolist()
    return [tokenizer.decode(until(row, *model.shape.ends), skip_special_tokens=True) for row in rows]


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
