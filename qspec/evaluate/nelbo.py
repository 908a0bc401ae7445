"""Masked NELBO per token, and how far the quantized model's predictions are from the unquantized one's.

For a sample x of L tokens, of which a random set of l is masked, l uniform on 1..L (arXiv 2502.09992, eq.
6; it has the same expectation as eq. 4, which masks at a share t ~ U(0, 1) and weighs by 1 / t, and a lower
variance):

    -log p(x) / L  <=  E_l [ 1/l * sum over the l masked i of  -log p(x_i | x masked) ]

in nats a token. The draws are fixed in advance by the seed and stratified: sample s and draw d take l = 1 +
floor(f L) with f = (d + (rank of s + u) / samples) / draws, one u for all; so the shares l / L cover (0, 1]
evenly within every sample and over all of them. Every model is given the same masked rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from qspec.data import TextData, spread
from qspec.effort import NELBO_DRAWS, NELBO_WINDOW
from qspec.errors import InputError
from qspec.evaluate.forward import (
    Batch,
    MaskedRow,
    Progress,
    Tokenizer,
    batches,
    hidden_at_masks,
    log_probabilities,
    silent,
    slices,
)
from qspec.evaluate.kept import computed
from qspec.evaluate.results import KlBucket, Metric, nelbo
from qspec.language.spec import NelboRequest
from qspec.models.sampler import Denoiser
from qspec.models.tokens import encode_long

SHORTEST = 8  # tokens that a text must have
BUCKETS = 5


@dataclass(frozen=True)
class NelboResult:
    metric: Metric
    kl: tuple[KlBucket, ...]


@dataclass(frozen=True)
class _Sums:
    """Sums over the masked positions of every row, float64 [rows]."""

    baseline: Tensor  # -log p of the true token
    quantized: Tensor
    kl: Tensor
    masked: Tensor


def windows(text: TextData, tokenizer: Tokenizer, vocab: int, samples: int, length: int) -> list[Tensor]:
    """At most `samples` consecutive windows int64 [length] of the joined documents, spread evenly over them.

    A text shorter than one window is one sample. Errors: InputError for one of fewer than 8 tokens, and
    for tokens that an embedding of `vocab` rows lacks.
    """
    ids = [token for document in text.documents for token in encode_long(tokenizer, document, vocab)]
    if len(ids) < SHORTEST:
        raise InputError(f"the text has {len(ids)} tokens, fewer than {SHORTEST}", where=str(text.files[0]))
    tokens = torch.tensor(ids, dtype=torch.int64)
    whole = [tokens[start : start + length] for start in range(0, len(ids) - length + 1, length)]
    return list(spread(whole or [tokens], samples))


def masked_rows(samples: Sequence[Tensor], draws: int, seed: int) -> list[MaskedRow]:
    """`draws` rows for every sample, in order, masked as the module's docstring says."""
    generator = torch.Generator().manual_seed(seed)
    rank = torch.randperm(len(samples), generator=generator).double()
    offset = torch.rand((), generator=generator, dtype=torch.float64)
    rows = []
    for place, tokens in enumerate(samples):
        for draw in range(draws):
            share = (draw + (rank[place] + offset) / len(samples)) / draws
            count = min(tokens.numel(), 1 + int(share * tokens.numel()))
            masked = torch.zeros(tokens.numel(), dtype=torch.bool)
            masked[torch.randperm(tokens.numel(), generator=generator)[:count]] = True
            rows.append(MaskedRow(tokens, masked))
    return rows


def measure_nelbo(
    baseline: Denoiser,
    quantized: Denoiser,
    tokenizer: Tokenizer,
    text: TextData,
    request: NelboRequest,
    seed: int,
    progress: Progress = silent,
) -> NelboResult:
    """NELBO of both models on the same masked rows of what was read for the request's text, and
    KL(quantized || unquantized) by mask ratio."""
    shape = baseline.shape
    passages = windows(text, tokenizer, shape.vocab, request.samples, min(NELBO_WINDOW, shape.max_length))
    rows = masked_rows(passages, NELBO_DRAWS, seed)
    sums = _score(baseline, quantized, rows, progress)
    samples_of = (_per_sample(sums.baseline, sums), _per_sample(sums.quantized, sums))
    name = request.text.name
    metric = nelbo(name, text.title, *samples_of, text.source)
    return NelboResult(metric, _buckets(name, rows, sums))


@torch.no_grad()
def _score(baseline: Denoiser, quantized: Denoiser, rows: Sequence[MaskedRow], progress: Progress) -> _Sums:
    sums = _Sums(*(torch.zeros(len(rows), dtype=torch.float64) for _ in range(4)))
    shape, done = baseline.shape, 0
    for batch in batches(rows, shape, baseline.device):
        inputs = (batch.ids, batch.targets, batch.masked, batch.real)
        (found,) = computed(quantized, "nelbo", inputs, partial(_summed, baseline, batch=batch))
        for total, own in zip((sums.baseline, sums.quantized, sums.kl, sums.masked), found.unbind(1), strict=True):
            total[list(batch.rows)] = own
        done += len(batch.rows)
        progress(done, len(rows))
    return sums


def _summed(baseline: Denoiser, quantized: Denoiser, batch: Batch) -> tuple[Tensor]:
    """Both models' -log p, the KL and the number of masked positions of each row of the batch; float64 [rows, 4]."""
    before, after = hidden_at_masks(baseline, batch), hidden_at_masks(quantized, batch)
    targets, place = batch.targets[batch.masked], batch.row_of
    sums = torch.zeros(len(batch.rows), 4, dtype=torch.float64)
    for part in slices(targets.numel(), baseline.shape.vocab):
        p, q = log_probabilities(baseline, before[part]), log_probabilities(quantized, after[part])
        tokens = targets[part].unsqueeze(1)
        kl = (q.exp() * (q - p)).sum(-1)
        values = torch.stack((-p.gather(1, tokens)[:, 0], -q.gather(1, tokens)[:, 0], kl, torch.ones_like(kl)), 1)
        sums.index_add_(0, place[part].cpu(), values.double().cpu())
    return (sums,)


def _per_sample(summed: Tensor, sums: _Sums) -> list[float]:
    """The mean over a sample's draws of 1/l sum -log p, float [samples]."""
    means: list[float] = (summed / sums.masked).reshape(-1, NELBO_DRAWS).mean(1).tolist()
    return means


def _buckets(text: str, rows: Sequence[MaskedRow], sums: _Sums) -> tuple[KlBucket, ...]:
    """Mean KL at the masked positions of rows in each fifth of the mask ratios (0, 1]; without empty fifths."""
    ratios = torch.tensor([row.masked.double().mean().item() for row in rows])
    bucket = (ratios * BUCKETS - 1e-6).floor().clamp(0, BUCKETS - 1).long()
    buckets = []
    for index in range(BUCKETS):
        chosen = bucket == index
        positions = int(sums.masked[chosen].sum())
        if positions:
            kl = float(sums.kl[chosen].sum()) / positions
            buckets.append(KlBucket(text, index / BUCKETS, (index + 1) / BUCKETS, kl, positions))
    return tuple(buckets)
