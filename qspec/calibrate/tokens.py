"""Calibration tokens: windows of text, masked as the model will see it while it denoises."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from qspec.errors import InputError
from qspec.models.tokens import Encodes, encode_long

if TYPE_CHECKING:
    from qspec.language.spec import MaskDistribution


REPEATS = 4


@dataclass(frozen=True)
class CalibrationTokens:
    """Rows of text as the model sees them while it denoises, on the CPU.

    ids: int64 [rows, length], the mask token where masked; of a block-causal model [rows, 2 length], that and then the
    text without masks, behind which its blocks are denoised. masked: bool, alike. weight: float32, alike, how much a
    token counts in statistics and Hessians. ratio: float32 [rows], the share t that each row's mask was drawn with.
    distinct, drawn: as `Windows` counts them. chat: whether prompts stand in the tokenizer's chat template.
    """

    ids: Tensor
    masked: Tensor
    weight: Tensor
    ratio: Tensor
    distinct: int
    drawn: int
    chat: bool = False

    @property
    def sha256(self) -> str:
        """Hash of the exact tokens and of their weights, for the manifest and the lock."""
        digest = hashlib.sha256(self.ids.numpy().tobytes())
        digest.update(self.weight.numpy().tobytes())
        return digest.hexdigest()


@dataclass(frozen=True)
class Windows:
    """Stretches of a text. ids: int64 [samples, length]. distinct: places of the text that some stretch holds."""

    ids: Tensor
    distinct: int

    @property
    def drawn(self) -> int:
        """Tokens of all stretches, those counted again that several hold."""
        return self.ids.numel()


def windows(
    texts: Sequence[str], tokenizer: Encodes, vocab: int, samples: int, length: int, generator: torch.Generator
) -> Windows:
    """Stretches of the joined text, unmasked, at random offsets.

    vocab: rows of the model's embedding. Raises InputError where the text is shorter than one of them, or has tokens
    that the model lacks.
    """
    stream = torch.tensor([i for text in texts for i in encode_long(tokenizer, text, vocab)])
    if stream.numel() < length:
        raise InputError(
            f"the calibration text has {stream.numel()} tokens, fewer than one sample of {length}",
            hint="give more text, or a smaller `length`",
        )
    starts = torch.randint(stream.numel() - length + 1, (samples,), generator=generator)
    places = starts[:, None] + torch.arange(length)
    return Windows(stream[places], len(set(places.flatten().tolist())))


def repetition(distinct: int, drawn: int) -> str | None:
    """What to say where rows repeat so much text that they are not the data that they look like.

    Random stretches that draw as many tokens as a text has hold 63 % of it; a token drawn more than `REPEATS` times on
    average means a text much too short.
    """
    if drawn <= REPEATS * distinct:
        return None
    return (
        f"the text is too short: its rows draw {drawn:,} tokens and hold {distinct:,} distinct ones, "
        f"each {drawn / distinct:.0f} times on average; give more text, or lower `samples`"
    )


def positions_below(ratio: Tensor, draw: Tensor) -> Tensor:
    """bool [samples, length]: the positions that are masked at the shares ratio [samples], for draws u ~ U(0, 1).

    The same draws compared with growing ratios give nested masks: what is masked at one is masked at every larger one.
    """
    return draw < ratio[:, None]


def draw_masks(
    mask: MaskDistribution, samples: int, draws: int, length: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """masked bool [rows, length] and ratio float32 [rows], for rows = samples * draws in the samples' order.

    The forward process of a masked diffusion LLM (arXiv 2502.09992, eq. 2): a row has a share t of its own, and each
    of its tokens is masked with probability t, independently. With

    uniform   t ~ U(low, high)
    grid      t = low + (high - low) (d + (rank(s) + 1/2) / samples) / draws for sample s and draw d: evenly spaced over
              all rows and over the draws of a sample; exactly round(t length) tokens are masked
    fixed     t = low = high
    prefix    t ~ U(low, high), and the first p tokens, p uniform on 0 .. length - 1, stay visible: the idea of
              Quant-dLLM's masked calibration simulation (arXiv 2510.03274), with a prefix and a share of each row's own
    none      t = 0
    """
    rows = samples * draws
    if mask.kind == "grid":
        rank = torch.randperm(samples, generator=generator)
        place = torch.arange(draws) + (rank[:, None] + 0.5) / samples  # [samples, draws], in 0 .. draws
        ratio = mask.low + (mask.high - mask.low) * place.flatten() / draws
        order = torch.rand((rows, length), generator=generator).argsort(1).argsort(1)
        return order < (ratio * length).round()[:, None], ratio
    ratio = mask.low + (mask.high - mask.low) * torch.rand(rows, generator=generator)
    masked = positions_below(ratio, torch.rand((rows, length), generator=generator))
    if mask.kind == "prefix":
        masked &= torch.arange(length) >= torch.randint(length, (rows, 1), generator=generator)
    return masked, ratio
