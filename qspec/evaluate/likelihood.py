"""Monte Carlo likelihood of a continuation (LLaDA, arXiv 2502.09992, eq. 6), for tasks with choices.

    log p(y | context)  ~  mean over draws of  L'/l * sum of log p(y_i | rest) over the l masked of L' targets

Within a group of B = 8 draws l is stratified, l_b = ((round(k + b L'/B) - 1) mod L') + 1
with one k ~ U{1..L'}. Halves round up: the original code rounds them to even, which prefers even l and biases
the mean. Dream's own evaluation masks each target with probability t, stratified over the batch, and weighs the
sum by 1/t: the same expectation for the same row, with the chance of the number masked on top (a draw may mask
nothing). Its rows are others, though: it puts the beginning-of-text token before the context and a visible
end-of-text token behind the target, and rates p(y | bos, context, end). Here both families get context and target
alone, with the estimator above, so Dream's figures are not to be compared with the published ones. The draws are fixed
in advance by the seed and the text, the same for every model.
"""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from qspec.data import Choice, Scoring, TaskData, TaskItem
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
from qspec.evaluate.results import Metric, scored
from qspec.models.family import NO_MASK, DecoderShape
from qspec.models.sampler import Denoiser
from qspec.models.tokens import encode

GROUP = 8
ROWS = 4096  # held at once


@dataclass(frozen=True)
class RatedChoice:
    """A choice as tokens, with the weight L'/l of every draw. rows: what the model is given, one for each draw."""

    rows: tuple[MaskedRow, ...]
    weights: tuple[float, ...]


def masked_counts(length: int, draws: int, generator: torch.Generator) -> list[int]:
    """How many of `length` targets each draw masks, stratified in groups of eight."""
    counts: list[int] = []
    while len(counts) < draws:
        size = min(GROUP, draws - len(counts))
        k = int(torch.randint(1, length + 1, (), generator=generator))
        counts.extend((k + _rounded_up(b * length, size) - 1) % length + 1 for b in range(size))
    return counts


def _rounded_up(numerator: int, denominator: int) -> int:
    """The nearest whole number to a fraction, halves up."""
    return (2 * numerator + denominator) // (2 * denominator)


def encode_choice(choice: Choice, tokenizer: Tokenizer, shape: DecoderShape) -> tuple[list[int], list[int]]:
    """(context, target) tokens. White space that ends the context belongs to the target, and the text is encoded whole
    and split after the context's tokens, both as lm-eval does.

    Unlike there, a target that the tokenizer merged with the context's end is encoded alone. A context that is too long
    loses its beginning. Errors: InputError where the target alone is too long or is empty.
    """
    longest, before = shape.max_length, choice.context.rstrip()
    own = choice.context[len(before) :] + choice.text
    context = encode(tokenizer, before, shape.vocab)
    whole = encode(tokenizer, before + own, shape.vocab)
    target = whole[len(context) :]
    if whole[: len(context)] != context:  # the tokenizer merged across the border
        target = encode(tokenizer, own, shape.vocab)
    if not 0 < len(target) < longest:
        raise InputError(
            f"a choice has {len(target)} tokens; the model takes 1 to {longest - 1}", where=choice.text[:80]
        )
    return context[max(0, len(context) + len(target) - longest) :], target


def check_choices(task: TaskData, tokenizer: Tokenizer, shape: DecoderShape) -> None:
    """Errors as `encode_choice`, for the choices that can have any: a token is one byte of text at least."""
    for item in task.items:
        for choice in item.choices:
            own = choice.context[len(choice.context.rstrip()) :] + choice.text
            if not own or len(own.encode()) >= shape.max_length:
                encode_choice(choice, tokenizer, shape)


def rate(choice: Choice, tokenizer: Tokenizer, shape: DecoderShape, draws: int, seed: int) -> RatedChoice:
    """The rows of one choice. The seed is mixed with its text, so that the draws depend on neither order nor limit."""
    context, target = encode_choice(choice, tokenizer, shape)
    return rate_tokens(context, target, draws, zlib.crc32(f"{seed}/{choice.context}/{choice.text}".encode()))


def rate_tokens(context: Sequence[int], target: Sequence[int], draws: int, seed: int) -> RatedChoice:
    """The rows of a target behind a context. A target of one token has one draw, which is exact."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.tensor([*context, *target], dtype=torch.int64)
    rows, weights = [], []
    for count in masked_counts(len(target), draws if len(target) > 1 else 1, generator):
        masked = torch.zeros(tokens.numel(), dtype=torch.bool)
        masked[len(context) + torch.randperm(len(target), generator=generator)[:count]] = True
        rows.append(MaskedRow(tokens, masked))
        weights.append(len(target) / count)
    return RatedChoice(tuple(rows), tuple(weights))


def measure_choices(
    baseline: Denoiser,
    quantized: Denoiser,
    tokenizer: Tokenizer,
    task: TaskData,
    scoring: Scoring,
    seed: int,
    progress: Progress = silent,
) -> Metric:
    """Scores of how both models rate every item's choices, on the same rows."""
    choices = [choice for item in task.items for choice in item.choices]
    total = 2 * len(choices)
    plan = (tokenizer, choices, task.draws, seed)
    before = likelihoods(baseline, *plan, lambda done, _: progress(done, total))
    after = likelihoods(quantized, *plan, lambda done, _: progress(len(choices) + done, total))
    chance = sum(1 / len(item.choices) for item in task.items) / len(task.items)
    first, second = (scoring.score(task.items, _by_item(task.items, own)) for own in (before, after))
    return scored(task, scoring, first, second, chance)


def likelihoods(
    model: Denoiser,
    tokenizer: Tokenizer,
    choices: Sequence[Choice],
    draws: int,
    seed: int,
    progress: Progress = silent,
) -> list[float]:
    """log p of every choice, in nats; few of them at a time, since each has a row for every draw."""
    out: list[float] = []
    size = max(1, ROWS // draws)
    for start in range(0, len(choices), size):
        part = [rate(one, tokenizer, model.shape, draws, seed) for one in choices[start : start + size]]
        out += log_likelihoods(model, part)
        progress(len(out), len(choices))
    return out


def _by_item(items: Sequence[TaskItem], scores: Sequence[float]) -> list[list[float]]:
    left = iter(scores)
    return [[next(left) for _ in item.choices] for item in items]


def require_masks(shape: DecoderShape) -> None:
    """Raises InputError for a model without a mask token, whose likelihood these estimates do not bound."""
    if shape.mask_token == NO_MASK:
        what = "the likelihood of a text is estimated by masks, and the model has no mask token"
        raise InputError(what, hint="measure its NELBO, or tasks that generate")


@torch.no_grad()
def log_likelihoods(
    model: Denoiser,
    rated: Sequence[RatedChoice],
    progress: Progress = silent,
) -> list[float]:
    """log p of every choice under one model, in nats.

    Rows in which the model sees the same input (one-token choices after one context) share one forward pass.
    """
    require_masks(model.shape)
    rows = [row for choice in rated for row in choice.rows]
    readers = _same_input(rows, model.shape.mask_token)
    forwards = [rows[indices[0]] for indices in readers]
    sums = torch.zeros(len(rows), dtype=torch.float64)
    done = 0
    for batch in batches(forwards, model.shape, model.device):
        wanted = [[rows[row].tokens[rows[row].masked] for row in readers[forward]] for forward in batch.rows]
        inputs = (batch.ids, batch.masked, batch.real, *(targets for own in wanted for targets in own))
        (found,) = computed(model, "likelihood", inputs, partial(_summed, batch=batch, wanted=wanted))
        sums[[row for forward in batch.rows for row in readers[forward]]] = found
        done += len(batch.rows)
        progress(done, len(forwards))
    return _averaged(rated, sums.tolist())


def _summed(model: Denoiser, batch: Batch, wanted: Sequence[Sequence[Tensor]]) -> tuple[Tensor]:
    """The sum of log p of each row's targets, row after row of the batch; float64.

    Logits are many: of each, only the number of its target leaves the device.
    """
    hidden, counts = hidden_at_masks(model, batch), batch.masked.sum(1).tolist()
    first = [0, *itertools.accumulate(counts)]
    readers = [(index, targets) for index, own in enumerate(wanted) for targets in own]
    place = torch.cat([torch.arange(first[index], first[index + 1]) for index, _ in readers])
    reader = torch.arange(len(readers)).repeat_interleave(torch.tensor([counts[index] for index, _ in readers]))
    targets = torch.cat([targets for _, targets in readers])
    sums = torch.zeros(len(readers), dtype=torch.float64)
    for part in slices(len(hidden), model.shape.vocab):
        inside = (part.start <= place) & (place < part.stop)
        at, token = (one[inside].to(hidden.device) for one in (place - part.start, targets))
        p = log_probabilities(model, hidden[part])[at, token]
        sums.index_add_(0, reader[inside], p.cpu().double())
    return (sums,)


def _same_input(rows: Sequence[MaskedRow], mask_token: int) -> list[list[int]]:
    """Indices of rows, grouped by what the model sees."""
    groups: dict[tuple[bytes, bytes], list[int]] = {}
    for index, row in enumerate(rows):
        seen = row.tokens.masked_fill(row.masked, mask_token)
        groups.setdefault((seen.numpy().tobytes(), row.masked.numpy().tobytes()), []).append(index)
    return list(groups.values())


def _averaged(rated: Sequence[RatedChoice], sums: Sequence[float]) -> list[float]:
    """The mean over each choice's draws of L'/l times the sum of log p at its masked targets."""
    left = iter(sums)
    return [sum(weight * next(left) for weight in choice.weights) / len(choice.weights) for choice in rated]
