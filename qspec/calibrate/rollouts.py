"""Calibration rows that are states of real denoising: what the unquantized model's own sampler passes through.

Masked text has the true tokens at its visible places; a model that generates sees its own. Each state comes from a
known part of the way, as in temporal mask adaptive sampling (TMAS of DLLMQuant, arXiv 2508.14090): the shares still
masked, (0, 1], are cut into equal buckets, and the states are spread evenly over these.

A block-causal model denoises a block behind finished ones. All blocks of a row are then in such a state, each of its
own way, and the finished text stands behind them (`Decoder.noised_context`).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from qspec.errors import InputError, UsageError
from qspec.models.family import NO_MASK
from qspec.models.sampler import Denoiser, SampleStep, Settings, sample, settings_for

if TYPE_CHECKING:
    from qspec.language.spec import Rollouts

BATCH_TOKENS = 8192  # tokens of one forward pass
HEAD_VALUES = 1 << 28  # logits held at once: 1 GiB in float32; those of a whole canvas are needed


@dataclass(frozen=True)
class Recorded:
    """ids: int64 [rows, length]. ratio: float32 [rows], the share of the generated part that is masked. finished: of a
    block-causal model the text in the end, behind which its blocks were denoised, int64 [rows, length]."""

    ids: Tensor
    ratio: Tensor
    finished: Tensor | None = None


def record(model: Denoiser, prompts: Tensor, wanted: Rollouts, length: int, draws: int, seed: int) -> Recorded:
    """`draws` states of each prompt's rollout; prompts int64 [samples, prompt], rows in the prompts' order.

    The canvas of `length` tokens is one block, filled at temperature 0 in `wanted.steps` steps; each row is an input
    that the sampler gave to the model. Row r comes from bucket r mod B, so two buckets' rows differ in number by one
    at most, and the draws of one prompt, of which there are no more than buckets, come from different ones; among the
    states in its bucket a row takes one at random.
    Raises InputError where a rollout has no state in a bucket, and for steps that the sampler cannot take. In a
    block-causal model each block is in the state whose share is nearest to the middle of the row's bucket.
    """
    if model.shape.mask_token == NO_MASK:
        hint = "give the calibrate block a text and `mask`"
        raise InputError("rollouts of a model without a mask token have no masks to calibrate on", hint=hint)
    if model.shape.block is not None:
        return _record_blocks(model, prompts, wanted, length, draws, seed)
    generator = torch.Generator().manual_seed(seed)
    size = max(1, min(BATCH_TOKENS // length, HEAD_VALUES // (length * model.shape.vocab)))
    rows: list[Tensor] = []
    for start in range(0, prompts.shape[0], size):
        states = trajectory(model, prompts[start : start + size], wanted.steps, length, seed)
        for place in range(states.shape[1]):
            for draw in range(draws):
                bucket = ((start + place) * draws + draw) % wanted.buckets
                rows.append(_pick(states[:, place], bucket, wanted, model.shape.mask_token, generator))
    ids = torch.stack(rows)
    ratio = _masks(ids, wanted.prompt, model.shape.mask_token) / (length - wanted.prompt)
    return Recorded(ids, ratio)


def _record_blocks(model: Denoiser, prompts: Tensor, wanted: Rollouts, length: int, draws: int, seed: int) -> Recorded:
    """`record` of a block-causal model."""
    shape, prompt, size = model.shape, prompts.shape[1], max(1, BATCH_TOKENS // length)
    assert shape.block is not None
    try:
        settings = settings_for(shape, length - prompt, wanted.steps, seed=seed)
        found = [_orders(model, part, settings) for part in torch.split(prompts, size)]
    except UsageError as error:
        hint = f"choose other `steps` for `rollouts` in the calibrate block: {length - prompt} tokens are generated"
        raise InputError(error.what, hint=hint) from error
    order, texts = (torch.cat(parts) for parts in zip(*found, strict=True))
    rows = []
    for number in range(len(prompts) * draws):
        share = (number % wanted.buckets + 0.5) / wanted.buckets
        rows.append(_masked_at(order[number // draws], share, shape.block))
    masked = torch.stack(rows)
    finished = texts.repeat_interleave(draws, dim=0)
    ids = finished.masked_fill(masked, shape.mask_token)
    return Recorded(ids, masked.sum(1) / (length - prompt), finished)


def _orders(model: Denoiser, prompts: Tensor, settings: Settings) -> tuple[Tensor, Tensor]:
    """Which pass committed each token, counted from 1 on, 0 where no pass ever saw a mask; and the texts in the end.

    Both int64 [prompts, length].
    """
    shape, prompt = model.shape, prompts.shape[1]
    order = torch.zeros(prompts.shape[0], prompt + settings.length, dtype=torch.int64)
    passes = count(1)

    def follow(step: SampleStep) -> None:
        order[:, prompt:][step.committed.cpu()] = next(passes)

    texts = sample(model, prompts, None, settings, follow).cpu()
    if shape.shift and shape.block is not None:  # the pass that kept the block before committed its first token
        order[:, shape.block :: shape.block] = 0
    return order, texts


def _masked_at(order: Tensor, share: float, block: int) -> Tensor:
    """bool like order [length]: the masks of each block before the pass at which their share was nearest to this."""
    masked = torch.zeros_like(order, dtype=torch.bool)
    for start in range(0, len(order), block):
        own = order[start : start + block]
        states = [own >= first for first in sorted(set(own[own > 0].tolist()))]
        if states:
            room = int((own > 0).sum())
            masked[start : start + block] = min(states, key=lambda state: abs(int(state.sum()) / room - share))
    return masked


def trajectory(model: Denoiser, prompts: Tensor, steps: int, length: int, seed: int) -> Tensor:
    """The canvas before each step of the model's sampler, int64 [steps, prompts, length], on the CPU."""
    prompt = prompts.shape[1]
    room = length - prompt
    start = torch.cat((prompts, torch.full((prompts.shape[0], room), model.shape.mask_token)), dim=1)
    states = [start]

    def follow(step: SampleStep) -> None:
        after = states[-1].clone()
        after[:, prompt:][step.committed.cpu()] = step.tokens[step.committed].cpu()
        states.append(after)

    sample(model, prompts, None, settings_for(model.shape, room, steps, room, seed=seed), follow)
    return torch.stack(states[:-1])


def _pick(states: Tensor, bucket: int, wanted: Rollouts, mask: int, generator: torch.Generator) -> Tensor:
    """One of the states [steps, length] whose share of masks lies in (bucket / B, (bucket + 1) / B]."""
    masks, room = _masks(states, wanted.prompt, mask), states.shape[1] - wanted.prompt
    candidates = states[(masks * wanted.buckets + room - 1) // room == bucket + 1]  # whole numbers: no rounding
    if not candidates.shape[0]:
        low, high = bucket / wanted.buckets, (bucket + 1) / wanted.buckets
        raise InputError(
            f"a rollout passes through no state with a share of masks above {low:g} and up to {high:g}",
            hint="choose more `steps` or fewer `buckets` for `rollouts` in the calibrate block",
        )
    return candidates[int(torch.randint(candidates.shape[0], (), generator=generator))]


def _masks(ids: Tensor, prompt: int, mask: int) -> Tensor:
    """How many of the generated part of ids [rows, length]; int64 [rows]."""
    return (ids[:, prompt:] == mask).sum(1)
