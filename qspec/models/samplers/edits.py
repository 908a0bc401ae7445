"""Blocks whose tokens are edited: replaced, deleted, inserted (LLaDA2.2, the generate of its modeling_llada2_moe.py).

Beside the text's tokens the model predicts two that no text has: one deletes the token in its place, the other inserts
a mask before it. A pass over a block of n tokens, with c_i of `samplers.block`, writes the likeliest token

    over the c_i + a most confident masks, a of them added by edits, and over those above `threshold`; after the passes
        that `steps` give a block, over all masks
    over tokens other than a prompt's and itself where its probability is above `edit_threshold`

and then carries out what deletes and inserts, from left to right: the place of a token that deletes is closed, a token
that inserts gives way to a mask and the token that stood there. The block is cut to n tokens, or filled with masks.

The pass that is the `edit_steps`-th in a row to begin without a mask of the block's first ones is the last that writes;
with 0 the one that writes the last of these masks is. It writes over all masks, and writes no token that edits. A block
is finished by a pass that has no masks and changes nothing, so that what it kept is of the final tokens.

Edits can go in circles. Where a block has been written before, the least confident of the tokens that change takes its
second choice, five times at most. (The published code draws which token does; SGLang and we do not.)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from qspec.models.commit import most_confident
from qspec.models.decoder import Decoder
from qspec.models.likeliest import rated
from qspec.models.samplers.common import HEAD_VALUES, without

EDIT_STEPS = 16  # LLaDA2.1's and 2.2's
PASSES = 1000  # over a block at most, as in the published code
CHOICES = 5  # second ones, against circles


class Found(NamedTuple):
    """What a pass predicts for each place of a block, [b, n] each: the likeliest token, the likeliest but for it, the
    likeliest that does not edit, and the probability of the first."""

    best: Tensor
    second: Tensor
    plain: Tensor
    confidence: Tensor


@dataclass(frozen=True)
class Rules:
    """mask, delete, insert: tokens. steps: `edit_steps`."""

    mask: int
    delete: int
    insert: int
    threshold: float | None
    edit_threshold: float
    steps: int


class Edits:
    """What is known of blocks that are edited, in tensors that stay where they are.

    first: bool [b, n], which tokens came of the masks that the block began with. passes, without: int64 [b], passes
    that wrote, and those in a row without such masks. last: bool [b], whether the last one was. blocks: int64
    [b, PASSES, n], what each wrote. barred: bool [vocab], ids that are no token, or the mask.
    """

    def __init__(self, model: Decoder, batch: int, block: int) -> None:
        device = model.device
        self.first = torch.zeros(batch, block, dtype=torch.bool, device=device)
        self.passes, self.without = (torch.zeros(batch, dtype=torch.int64, device=device) for _ in range(2))
        self.last = torch.zeros(batch, dtype=torch.bool, device=device)
        self.blocks = torch.zeros(batch, PASSES, block, dtype=torch.int64, device=device)
        self.barred = without(model, model.shape.mask_token)

    def begin(self, masks: Tensor) -> None:
        """Of a block with these masks, bool [b, n]."""
        self.first.copy_(masks)
        for part in (self.passes, self.without, self.last):
            part.zero_()

    def found(self, model: Decoder, x: Tensor, finite: Tensor) -> Found:
        """Of x [b, n, d] behind the last block. finite: as in `common.token_logits`."""
        parts, size = [], max(1, HEAD_VALUES // (model.shape.vocab * len(x)))
        for start in range(0, x.shape[1], size):
            logits = rated(model.finish(x[:, start : start + size]), self.barred, finite)
            lowest = torch.finfo(logits.dtype).min
            best = logits.argmax(-1)
            confidence = logits.softmax(-1).gather(-1, best[..., None]).squeeze(-1)
            second = logits.scatter(-1, best[..., None], lowest).argmax(-1)
            for token in model.shape.edit_tokens:
                logits[..., token].fill_(lowest)  # nothing is copied from the host, in a captured pass
            parts.append(Found(best, second, logits.argmax(-1), confidence))
        return Found(*(torch.cat(part, dim=1) for part in zip(*parts, strict=True)))

    def step(self, own: Tensor, still: Tensor, found: Found, share: Tensor, rules: Rules) -> Tensor:
        """The tokens [b, n] behind a pass over `own`. still: bool [b, n], places that no edit may change: a prompt's,
        and all of finished rows. share: int64 [], c_i."""
        active = ~still.all(1) & ~self.last
        masked = own == rules.mask
        first = masked & self.first
        self.without.copy_(torch.where(active & ~first.any(1), self.without + 1, 0))
        sure = found.confidence.masked_fill(~masked, -torch.inf)
        write = most_confident(sure, share + (masked & ~first).sum(1, keepdim=True))
        if rules.threshold is not None:
            write |= sure > rules.threshold
        replaced = ~masked & (found.confidence > rules.edit_threshold) & (found.best != own)
        last = self.without >= rules.steps if rules.steps else first.any(1) & ~(first & ~write).any(1)
        last = (last | (self.passes >= PASSES - 1)) & active
        write = (write | replaced | masked & last[:, None]) & ~still & active[:, None]
        edit = (found.best == rules.delete) | (found.best == rules.insert)
        after = torch.where(write, torch.where(last[:, None] & edit, found.plain, found.best), own)
        after = self._unseen(own, after, found, active & ~last)
        place = self.passes.clamp(max=PASSES - 1)[:, None, None].expand(-1, 1, own.shape[1])
        self.blocks.scatter_(1, place, after[:, None])
        self.passes += active
        self.last |= last
        after, origin = carried_out(after, own, still | ~active[:, None], rules)
        tracked = self.first.gather(1, origin.clamp(min=0)) & (origin >= 0)
        self.first.copy_(torch.where(active[:, None], tracked, self.first))
        return after

    def _unseen(self, own: Tensor, after: Tensor, found: Found, rows: Tensor) -> Tensor:
        """`after`, or where these rows bool [b] have been written so before, with second choices."""
        live = torch.arange(PASSES, device=own.device) < self.passes[:, None]
        for _ in range(CHOICES):
            changed = after != own
            seen = ((self.blocks == after[:, None]).all(2) & live).any(1) & rows & changed.any(1)
            place = found.confidence.masked_fill(~changed, torch.inf).argmin(1, keepdim=True)
            now, best, second = (part.gather(1, place) for part in (after, found.best, found.second))
            other = torch.where(now == best, second, best)
            after = after.scatter(1, place, torch.where(seen[:, None], other, now))
        return after


def carried_out(written: Tensor, own: Tensor, still: Tensor, rules: Rules) -> tuple[Tensor, Tensor]:
    """Written tokens [b, n] without those that edit, and where each stood, int64 [b, n], -1 of masks that are new.

    own: what was written over. still: as in `Edits.step`.
    """
    size = own.shape[1]
    deleted, inserted = ((written == token) & ~still for token in (rules.delete, rules.insert))
    counts = 1 - deleted.long() + inserted.long()
    stop = counts.cumsum(1)
    places = torch.arange(size, device=own.device).expand_as(own).contiguous()
    origin = torch.searchsorted(stop, places, right=True)  # of which place's tokens a place takes one
    filled = origin < size
    origin = origin.clamp(max=size - 1)
    new = inserted.gather(1, origin) & (places == stop.gather(1, origin) - 2)
    kept = torch.where(inserted, own, written).gather(1, origin)
    return torch.where(new | ~filled, rules.mask, kept), torch.where(new | ~filled, -1, origin)
