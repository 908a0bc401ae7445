"""What a layout loses on masked text, by mask ratio.

For a row of which l tokens are masked, at the masked positions i, with p the unquantized model and q the layout:

    kl      1/l sum_i sum_v p_i(v) (log p_i(v) - log q_i(v))
    nelbo   1/l sum_i -log q_i(x_i)   minus the same of the unquantized model

averaged over the rows, which cover the mask ratios evenly (`qspec.evaluate.nelbo`): the second is the increase of the
masked NELBO itself, the first its expectation where the text is drawn from p. A task's rows are its prompts and answers
with some of the answer masked, and lose as "nelbo".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from qspec.evaluate.forward import Batch, MaskedRow, batches, inputs, log_probabilities, predictors_of, slices
from qspec.evaluate.forward import context as context_of
from qspec.models.decoder import Decoder
from qspec.models.decoder_block import DecoderBlock
from qspec.models.operations import AttentionContext
from qspec.precision import fast_products

BUCKETS = 5
Measure = Literal["kl", "nelbo"]


@dataclass(frozen=True)
class Loss:
    """mean: over all rows, in nats. buckets: over the rows in each fifth of the mask ratios (0, 1], if any."""

    mean: float
    buckets: tuple[float | None, ...]

    def scaled(self, factor: float) -> Loss:
        return Loss(self.mean * factor, tuple(None if b is None else b * factor for b in self.buckets))


@dataclass(frozen=True)
class Reference:
    """Some rows as the unquantized model sees them. hidden: what predicts their masked positions, [positions, d]."""

    batch: Batch
    context: AttentionContext
    hidden: Tensor


class LossRows:
    """Rows that probes or layouts are measured on."""

    def __init__(self, model: Decoder, rows: Sequence[MaskedRow], measure: Measure, tokens: int) -> None:
        """model: the unquantized one. tokens: of one forward pass."""
        self.model = model
        self.measure = measure
        self.ratios = [float(row.masked.double().mean()) for row in rows]
        self.references: list[Reference] = []
        with torch.no_grad():
            for batch in batches(rows, model.shape, model.device, tokens):
                context = context_of(model, batch)
                x = model.embed_rows(inputs(model, batch))
                for block in model.blocks[:-1]:
                    x = block(x, context)
                self.references.append(Reference(batch, context, self.hidden(model.blocks[-1], x, batch, context)))

    def hidden(self, last: DecoderBlock, x: Tensor, batch: Batch, context: AttentionContext) -> Tensor:
        """Of the last block's output for x [b, t, d], what predicts the masked positions, [positions, d].

        Behind the attention no token reads another, so that the rest is computed at these positions alone; but where
        tokens share experts.
        """
        if context.pools is not None:
            return self.at_masks(last(x, context), batch)
        return last.fed(self.at_masks(last.attended(x, context), batch))

    def at_masks(self, x: Tensor, batch: Batch) -> Tensor:
        """Of x [b, t, d], the tokens that predict the masked positions, [positions, d]."""
        return predictors_of(self.model, x, batch)[batch.masked]

    def embedded(self) -> list[Tensor]:
        """Every batch at the first block's input."""
        return [self.model.embed_rows(inputs(self.model, reference.batch)) for reference in self.references]

    def loss(self, last: DecoderBlock, states: Sequence[Tensor]) -> Loss:
        """Of the layout with this last block, at whose input are these states [b, t, d], one for each batch."""
        return self.summary(self.each(last, states))

    @torch.no_grad()
    def each(self, last: DecoderBlock, states: Sequence[Tensor]) -> list[float]:
        """The same of every row, in their order."""
        rows = torch.zeros(len(self.ratios), dtype=torch.float64)
        for reference, x in zip(self.references, states, strict=True):
            index = torch.tensor(reference.batch.rows)
            with fast_products():
                hidden = self.hidden(last, x, reference.batch, reference.context)
            rows[index] = self._row_means(reference, hidden)
        means: list[float] = rows.tolist()
        return means

    def summary(self, rows: Sequence[float]) -> Loss:
        """Of the losses of all rows."""
        buckets: list[list[float]] = [[] for _ in range(BUCKETS)]
        for ratio, value in zip(self.ratios, rows, strict=True):
            buckets[min(BUCKETS - 1, max(0, int(ratio * BUCKETS - 1e-6)))].append(value)
        return Loss(sum(rows) / len(rows), tuple(sum(b) / len(b) if b else None for b in buckets))

    def _row_means(self, reference: Reference, hidden: Tensor) -> Tensor:
        """float64 [rows of the batch]."""
        batch, place = reference.batch, reference.batch.row_of
        total = torch.zeros(len(batch.rows), dtype=torch.float64)
        targets = batch.targets[batch.masked]
        for part in slices(hidden.shape[0], self.model.shape.vocab):
            p = log_probabilities(self.model, reference.hidden[part])
            q = log_probabilities(self.model, hidden[part])
            if self.measure == "kl":
                lost = (p.exp() * (p - q)).sum(-1)
            else:
                lost = (p - q).gather(1, targets[part].unsqueeze(1))[:, 0]
            total.index_add_(0, place[part].cpu(), lost.double().cpu())
        return total / batch.masked.sum(1).cpu()

    def score(self, reference: Reference, generator: torch.Generator) -> Tensor:
        """The gradient of sum_i -log p(v_i) by `reference.hidden`, for tokens v_i drawn from p; [positions, d]."""
        gradients = []
        for part in slices(reference.hidden.shape[0], self.model.shape.vocab):
            with torch.enable_grad():
                hidden = reference.hidden[part].detach().requires_grad_()
                p = log_probabilities(self.model, hidden)
                drawn = torch.multinomial(p.detach().exp().cpu(), 1, generator=generator).to(p.device)
                (gradient,) = torch.autograd.grad(-p.gather(1, drawn).sum(), hidden)
            gradients.append(gradient)
        return torch.cat(gradients)
