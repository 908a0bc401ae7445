"""Calibration rows that are states of real denoising: what the unquantized model's own sampler passes through.

Masked text has the true tokens at its visible places; a model that generates sees its own. Each state comes from a
known part of the way, as in temporal mask adaptive sampling (TMAS of DLLMQuant, arXiv 2508.14090): the shares still
masked, (0, 1], are cut into equal buckets, and the states are spread evenly over these.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from qspec.errors import InputError
from qspec.models.sampler import Denoiser, SampleStep, sample, settings_for

if TYPE_CHECKING:
    from qspec.language.spec import Rollouts

BATCH_TOKENS = 8192  # tokens of one forward pass
HEAD_VALUES = 1 << 28  # logits held at once: 1 GiB in float32; those of a whole canvas are needed


@dataclass(frozen=True)
class Recorded:
    """ids: int64 [rows, length]. ratio: float32 [rows], the share of the generated part that is masked."""

    ids: Tensor
    ratio: Tensor


def record(model: Denoiser, prompts: Tensor, wanted: Rollouts, length: int, draws: int, seed: int) -> Recorded:
    """`draws` states of each prompt's rollout; prompts int64 [samples, prompt], rows in the prompts' order.

    The canvas of `length` tokens is one block, filled at temperature 0 in `wanted.steps` steps; each row is an input
    that the sampler gave to the model. Row r comes from bucket r mod B, so two buckets' rows differ in number by one
    at most, and the draws of one prompt, of which there are no more than buckets, come from different ones; among the
    states in its bucket a row takes one at random.
    Raises InputError where a rollout has no state in a bucket.
    """
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
    return Recorded(ids, _masks(ids, wanted.prompt, model.shape.mask_token) / (length - wanted.prompt))


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
