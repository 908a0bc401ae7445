"""How far the quantized model's denoising leaves the unquantized model's: commits, first divergence, final texts."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from qspec.evaluate.results import Flips
from qspec.models.sampler import through_end

FLIP_PARTS = 32  # points of the curve of commit flips, at most
NEVER = -1  # instead of a step


@dataclass(frozen=True)
class Trajectory:
    """What one model wrote: its tokens, and the step that committed each, NEVER behind the block in which a text ended;
    int64 [items, length] both."""

    tokens: Tensor
    commit_step: Tensor


def compare(task: str, baseline: Trajectory, quantized: Trajectory, steps: int, *ends: int) -> Flips:
    """Both models' texts of one task, at the positions up to the unquantized model's first end of text.

    A text diverges at the first step at which one model commits what the other does not: min over the positions whose
    token or step differs of the earlier of their steps, as a share of the steps.
    """
    counted = through_end(baseline.tokens, ends)
    moved, other = baseline.commit_step != quantized.commit_step, baseline.tokens != quantized.tokens
    part = baseline.commit_step[counted] * min(FLIP_PARTS, steps) // steps
    curve = []
    for index in range(min(FLIP_PARTS, steps)):
        chosen = moved[counted][part == index].double()
        curve.append(float(chosen.mean()) if chosen.numel() else None)
    ended = quantized.commit_step == NEVER
    first = torch.where(ended, baseline.commit_step, torch.minimum(baseline.commit_step, quantized.commit_step))
    first = first.masked_fill(~(counted & (moved | other)), steps).amin(1).double() / steps
    return Flips(
        task=task,
        commit_flips=tuple(curve),
        mean=float(moved[counted].double().mean()),
        token_flips=float(other[counted].double().mean()),
        positions=int(counted.sum()),
        texts=len(counted),
        same_texts=int((~(counted & other).any(1)).sum()),
        first_divergence=float(first.quantile(0.5)),
        tokens_per_step=baseline.tokens.shape[1] / steps,
    )
