"""Masked rows through a model: padded batches, and log-probabilities only where they are needed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from qspec.effort import BATCH_TOKENS
from qspec.models.decoder import Decoder
from qspec.models.family import DecoderShape
from qspec.models.noising import noised
from qspec.models.operations import AttentionContext
from qspec.models.samplers.block import decoder_of
from qspec.models.samplers.common import HEAD_VALUES, Denoiser, predicting, token_logits
from qspec.models.shift import noised_predictors, predictors
from qspec.models.tokens import Encodes

Progress = Callable[[int, int], None]  # parts done, parts in all


def silent(_done: int, _total: int) -> None:
    """Shows no progress."""


class Tokenizer(Encodes, Protocol):
    """What evaluation needs of a tokenizer: transformers' fast tokenizers have it."""

    def decode(self, token_ids: list[int], *, skip_special_tokens: bool) -> str: ...


@dataclass(frozen=True)
class MaskedRow:
    """One input: tokens int64 [t], unmasked, and masked bool [t], where the model sees the mask token."""

    tokens: Tensor
    masked: Tensor


@dataclass(frozen=True)
class Batch:
    """rows: indices into the list that was batched. ids, masked, real: [b, t]; ids holds mask tokens where masked."""

    rows: tuple[int, ...]
    ids: Tensor
    targets: Tensor
    masked: Tensor
    real: Tensor

    @property
    def row_of(self) -> Tensor:
        """For every masked position, in order, the place of its row in the batch; int64 [positions]."""
        return self.masked.nonzero()[:, 0]


def batches(
    rows: Sequence[MaskedRow], shape: DecoderShape, device: torch.device, tokens: int = BATCH_TOKENS
) -> Iterator[Batch]:
    """Rows of like length together, padded at the right, at most `tokens` a batch (one row at least)."""
    order = sorted(range(len(rows)), key=lambda index: (-rows[index].tokens.numel(), index))
    while order:
        size = max(1, tokens // rows[order[0]].tokens.numel())
        chosen, order = order[:size], order[size:]
        yield _padded(chosen, rows, shape, device)


def _padded(chosen: Sequence[int], rows: Sequence[MaskedRow], shape: DecoderShape, device: torch.device) -> Batch:
    length = max(rows[index].tokens.numel() for index in chosen)
    targets = torch.full((len(chosen), length), shape.pad_token, dtype=torch.int64)
    ids = targets.clone()
    masked = torch.zeros(len(chosen), length, dtype=torch.bool)
    real = torch.zeros(len(chosen), length, dtype=torch.int64)
    for place, index in enumerate(chosen):
        size = rows[index].tokens.numel()
        targets[place, :size] = rows[index].tokens
        masked[place, :size] = rows[index].masked
        real[place, :size] = 1
        generator = torch.Generator().manual_seed(index)  # a row is noised alike, whatever its batch
        ids[place, :size] = noised(rows[index].tokens, rows[index].masked, shape, generator)
    return Batch(tuple(chosen), *(each.to(device) for each in (ids, targets, masked, real)))


def hidden_at_masks(model: Denoiser, batch: Batch) -> Tensor:
    """Hidden states that predict the masked positions, [positions, d].

    In a block-causal model each block is predicted behind clean ones, all in one pass. Monte Carlo estimates keep
    their mean: a block's masks are then drawn as those of a text of its own would be.
    """
    if model.shape.block is None:
        return predicting(model, batch.ids, batch.real)[batch.masked]
    decoder = decoder_of(model)
    x = decoder.rows_through(inputs(decoder, batch), context(decoder, batch))
    return predictors_of(decoder, x, batch)[batch.masked]


def inputs(model: Decoder, batch: Batch) -> Tensor:
    """What a decoder embeds: ids [b, t], or [b, 2 t], noised and clean, where it is block-causal."""
    return batch.ids if model.shape.block is None else torch.cat((batch.ids, batch.targets), dim=1)


def context(model: Decoder, batch: Batch) -> AttentionContext:
    """Of `inputs`."""
    return model.context(batch.ids, batch.real) if model.shape.block is None else model.noised_context(batch.real != 0)


def predictors_of(model: Decoder, x: Tensor, batch: Batch) -> Tensor:
    """Of x behind the last block for `inputs`, what predicts each token [b, t, d]."""
    shape = model.shape
    return predictors(x, shape, batch.real) if shape.block is None else noised_predictors(x, shape, batch.real)


def log_probabilities(model: Denoiser, hidden: Tensor) -> Tensor:
    """log softmax of the logits in float32, [positions, vocab]; NumericsError where they are not finite."""
    return torch.log_softmax(token_logits(model, hidden), dim=-1)


def slices(positions: int, vocab: int) -> Iterator[slice]:
    """Consecutive parts of the masked positions, so few at a time that their logits fit into memory."""
    size = max(1, HEAD_VALUES // vocab)
    return (slice(start, start + size) for start in range(0, positions, size))
