"""Calibration tokens: windows of text, masked as the model will see it while it denoises."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from qspec.errors import InputError

if TYPE_CHECKING:
    from qspec.language.spec import Calibration, MaskDistribution


class Encodes(Protocol):
    """What calibration needs of a tokenizer."""

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]: ...


@dataclass(frozen=True)
class CalibrationTokens:
    """Rows of text as the model sees them while it denoises, on the CPU.

    ids: int64 [rows, length], the mask token where masked. masked: bool [rows, length]. weight: float32
    [rows, length], how much a token counts in statistics and Hessians. ratio: float32 [rows], the share t that
    each row's mask was drawn with.
    """

    ids: Tensor
    masked: Tensor
    weight: Tensor
    ratio: Tensor

    @property
    def sha256(self) -> str:
        """Hash of the exact tokens and of their weights, for the manifest and the lock."""
        digest = hashlib.sha256(self.ids.numpy().tobytes())
        digest.update(self.weight.numpy().tobytes())
        return digest.hexdigest()


def calibration_tokens(
    texts: Sequence[str], tokenizer: Encodes, wanted: Calibration, length: int, mask_token: int
) -> CalibrationTokens:
    """Windows of `length` tokens at random offsets of the joined text, each masked at a share t of its own.

    t ~ U(low, high) per sample; every token is replaced by the mask token with probability t, independently: the
    forward process of a masked diffusion LLM (arXiv 2502.09992, eq. 2). All draws come from the recipe's seed.
    Raises InputError where the text is shorter than one window.
    """
    generator = torch.Generator().manual_seed(wanted.seed)
    ids = windows(texts, tokenizer, wanted.samples, length, generator)
    ratio = _ratios(wanted.mask, wanted.samples, generator)
    masked = positions_below(ratio, torch.rand(ids.shape, generator=generator))
    return CalibrationTokens(ids.masked_fill(masked, mask_token), masked, torch.ones(ids.shape), ratio)


def windows(texts: Sequence[str], tokenizer: Encodes, samples: int, length: int, generator: torch.Generator) -> Tensor:
    """int64 [samples, length]: stretches of the joined text, unmasked, at random offsets.

    Raises InputError where the text is shorter than one of them.
    """
    stream = torch.tensor([i for text in texts for i in tokenizer.encode(text, add_special_tokens=False)])
    if stream.numel() < length:
        raise InputError(
            f"the calibration text has {stream.numel()} tokens, fewer than one sample of {length}",
            hint="give more text, or a smaller `length`",
        )
    starts = torch.randint(stream.numel() - length + 1, (samples,), generator=generator)
    return torch.stack([stream[start : start + length] for start in starts.tolist()])


def positions_below(ratio: Tensor, draw: Tensor) -> Tensor:
    """bool [samples, length]: the positions that are masked at the shares ratio [samples], for draws u ~ U(0, 1).

    The same draws compared with growing ratios give nested masks: what is masked at one is masked at every larger one.
    """
    return draw < ratio[:, None]


def _ratios(mask: MaskDistribution, samples: int, generator: torch.Generator) -> Tensor:
    if mask.kind == "none":
        return torch.zeros(samples)
    return mask.low + (mask.high - mask.low) * torch.rand(samples, generator=generator)
