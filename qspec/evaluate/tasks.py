"""Tasks that are solved by denoising text: scores of both models, and how their trajectories part.

Both models get the same prompts in the same batches, the same sampler settings and the same seed: length,
steps and block of the task, at temperature 0, with the sampler of their family. Dream's has no blocks and fills
the whole length at once, the surest positions by entropy first. A text
ends at the first end-of-text token, behind whose block nothing is computed, or where a stop string begins; how it is
scored, the task says.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from qspec.data import Scoring, TaskData, TaskItem
from qspec.effort import BATCH_TOKENS
from qspec.errors import InputError, UsageError
from qspec.evaluate.forward import Progress, Tokenizer, silent
from qspec.evaluate.kept import computed
from qspec.evaluate.results import Flips, Metric, Sample, Speed, scored
from qspec.evaluate.trajectories import NEVER, Trajectory, compare
from qspec.models.family import DecoderShape
from qspec.models.sampler import Denoiser, SampleStep, Settings, left_padded, sample, settings_for, stops, until
from qspec.models.tokens import encode

SAMPLES_KEPT = 5  # texts of one task in the report
PROMPT_KEPT = 1200  # characters of a prompt's end in the report


@dataclass(frozen=True)
class TaskResult:
    metric: Metric
    flips: Flips
    samples: tuple[Sample, ...]
    speed: Speed | None


class Clock:
    """Times the denoising steps in which most texts of a batch take part, for other steps are shorter, and which texts
    end early differs between models. A batch is known by the median of these steps: the first compile kernels."""

    def __init__(self) -> None:
        self.batches: list[tuple[int, int, int, float]] = []  # texts, tokens of the steps, steps, seconds of one

    @property
    def step(self) -> float:
        """Milliseconds of a step, the mean over the batches."""
        return 1e3 * sum(batch[3] for batch in self.batches) / len(self.batches)

    @property
    def tokens_per_second(self) -> float:
        """Tokens that these steps commit for the first time."""
        return sum(batch[1] for batch in self.batches) / sum(batch[2] * batch[3] for batch in self.batches)


def measure_task(
    baseline: Denoiser,
    quantized: Denoiser,
    tokenizer: Tokenizer,
    task: TaskData,
    scoring: Scoring,
    seed: int,
    progress: Progress = silent,
) -> TaskResult:
    """Scores of what both models write; scoring: one that is not rated.

    Errors: InputError for sampler lengths that do not divide and for prompts that do not fit the model.
    """
    settings, prompts = prepared(baseline.shape, task, tokenizer, seed)
    total = 2 * len(prompts)
    clocks = Clock(), Clock()
    before = denoise(baseline, prompts, settings, lambda done, _: progress(done, total), clocks[0])
    after = denoise(quantized, prompts, settings, lambda done, _: progress(len(prompts) + done, total), clocks[1])
    texts = [written(tokenizer, run, baseline.shape.ends, task.stop) for run in (before, after)]
    scores = [scoring.score(task.items, own) for own in texts]
    right = [[one[scoring.metric] == 1 for one in own] for own in scores]
    return TaskResult(
        metric=scored(task, scoring, scores[0], scores[1]),
        flips=compare(task.name, before, after, settings.steps, *baseline.shape.ends),
        samples=tuple(_kept(task, texts, right)),
        speed=_speed(task.name, *clocks),
    )


def prepared(shape: DecoderShape, task: TaskData, tokenizer: Tokenizer, seed: int) -> tuple[Settings, list[list[int]]]:
    """The sampler's settings and every prompt as tokens; errors as `measure_task`, without a model."""
    settings = _settings(shape, task, seed)
    return settings, encode_prompts(
        [item.prompt for item in task.items], tokenizer, shape, settings, f"task {task.name}"
    )


def encode_prompts(
    texts: Sequence[str], tokenizer: Tokenizer, shape: DecoderShape, settings: Settings, where: str
) -> list[list[int]]:
    """Prompts as tokens. Errors: InputError for one that does not fit the model with what is generated."""
    prompts = [encode(tokenizer, text, shape.vocab) for text in texts]
    for number, prompt in enumerate(prompts, 1):
        if len(prompt) + settings.length > shape.max_length:
            raise InputError(
                f"prompt {number} of {len(prompts)} has {len(prompt)} tokens: with {settings.length} to generate, "
                f"more than the model's {shape.max_length}",
                where=where,
                hint="lower the task's `length` or `shots`",
            )
    return prompts


def denoise(
    model: Denoiser,
    prompts: Sequence[Sequence[int]],
    settings: Settings,
    progress: Progress = silent,
    clock: Clock | None = None,
) -> Trajectory:
    """Continues every prompt; prompts of like length share a batch, padded on the left.

    clock: gets the times of batches that are computed here, not taken from an earlier run.
    """
    tokens = torch.zeros(len(prompts), settings.length, dtype=torch.int64)
    commit_step = torch.zeros_like(tokens)
    order = sorted(range(len(prompts)), key=lambda index: (-len(prompts[index]), index))
    done = 0
    for chosen in _batches(order, [len(prompt) + settings.length for prompt in prompts]):
        ids, mask = left_padded([prompts[index] for index in chosen], model.shape.pad_token)
        run = partial(_denoised, ids=ids, mask=mask, settings=settings, clock=clock or Clock())
        tokens[chosen], commit_step[chosen] = computed(model, f"denoise {settings}", (ids, mask), run)
        done += len(chosen)
        progress(done, len(prompts))
    return Trajectory(tokens, commit_step)


def _speed(task: str, before: Clock, after: Clock) -> Speed | None:
    """None where a model's texts were all taken from an earlier run."""
    if not before.batches or not after.batches:
        return None
    rows = sum(batch[0] for batch in after.batches) / len(after.batches)
    return Speed(task, rows, before.step, after.step, before.tokens_per_second, after.tokens_per_second)


def _denoised(model: Denoiser, ids: Tensor, mask: Tensor, settings: Settings, clock: Clock) -> tuple[Tensor, Tensor]:
    """What the model writes behind prompts [b, t], and the step that committed each token; int64 [b, length] both."""
    steps = torch.full((len(ids), settings.length), NEVER)
    made = list[tuple[int, int, float]]()  # texts in a step, tokens that it commits for the first time, seconds
    start = time.perf_counter()

    def record(step: SampleStep) -> None:
        nonlocal start
        committed = step.committed.cpu()  # waits for the device, so that the time is the step's
        before, start = start, time.perf_counter()
        new = committed & (steps == NEVER)
        made.append((int(committed.any(1).sum()), int(new.sum()), start - before))
        steps[committed] = step.index

    text = sample(model, ids, mask, settings, record)[:, ids.shape[1] :]
    most = max(rows for rows, _, _ in made)
    full = [(tokens, seconds) for rows, tokens, seconds in made if rows == most]
    median = statistics.median(seconds for _, seconds in full)
    clock.batches.append((most, sum(tokens for tokens, _ in full), len(full), median))
    return text, steps


def _batches(order: Sequence[int], lengths: Sequence[int]) -> Iterator[list[int]]:
    """Consecutive parts of `order`, longest first, of at most BATCH_TOKENS tokens with padding (one row at least)."""
    start = 0
    while start < len(order):
        size = max(1, BATCH_TOKENS // lengths[order[start]])
        yield list(order[start : start + size])
        start += size


def _settings(shape: DecoderShape, task: TaskData, seed: int) -> Settings:
    try:
        return settings_for(shape, task.length, task.steps, task.block, seed=seed, stop=stops(shape))
    except UsageError as error:  # here the numbers come from a recipe or a stand-in, not from a command line
        raise InputError(error.what, where=f"task {task.name}", hint=error.hint) from error


def written(tokenizer: Tokenizer, run: Trajectory, ends: Sequence[int], stop: Sequence[str]) -> list[str]:
    """The texts of a run, each up to the token that ends it and the first of the stop strings."""
    rows: list[list[int]] = run.tokens.tolist()
    return [cut(tokenizer.decode(until(row, *ends), skip_special_tokens=True), stop) for row in rows]


def cut(text: str, stop: Sequence[str]) -> str:
    """The text before the first of the stop strings."""
    for mark in stop:
        text = text.split(mark, 1)[0]
    return text


def _kept(task: TaskData, texts: Sequence[list[str]], right: Sequence[list[bool]]) -> Iterator[Sample]:
    """The samples for the report: items on which the models disagree come first, then items in order."""
    order = sorted(range(len(task.items)), key=lambda index: (right[0][index] == right[1][index], index))
    for index in order[:SAMPLES_KEPT]:
        item = task.items[index]
        yield Sample(
            task.name,
            _end_of_prompt(item),
            item.answer,
            texts[0][index].strip(),
            texts[1][index].strip(),
            right[0][index],
            right[1][index],
        )


def _end_of_prompt(item: TaskItem) -> str:
    return item.prompt if len(item.prompt) <= PROMPT_KEPT else "…" + item.prompt[-PROMPT_KEPT:]
