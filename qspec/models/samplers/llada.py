"""LLaDA's sampler: semi-autoregressive denoising with remasking (arXiv 2502.09992, section 2.4, appendix B).

The canvas is the prompt followed by `length` mask tokens, filled in blocks from left to right. A block of B
tokens has S steps; step i commits B // S tokens, and one more while i < B mod S. Each step is one full
forward over the canvas; for each position of the block that is still a mask

    x0         = argmax l                                   at temperature T = 0
                 argmax exp(l) / (-log u)^T, u ~ U(0, 1)    otherwise, in float64 (arXiv 2409.02908)
    confidence = softmax(l)[x0]                             remasking "low_confidence"
                 u' ~ U(0, 1)                               remasking "random"

and the most confident positions of each row are committed; the rest stay masks. u and u' are functions of seed, step,
row, position (and token, for u), the same on every device (`noise`). With guidance s > 0,
l = un + (s + 1)(cond - un), where `un` are the logits with the prompt masked too (arXiv 2410.18514).

With a cache the steps of a block after its first compute a part of the canvas alone (`cached`).

Parallel commits (Fast-dLLM, arXiv 2505.22618) are an approximation that takes fewer steps: besides its share a step
commits every position that is sure, and a block ends when no mask is left. Sure is, of confidences c_1 >= c_2 >= ... of
a row,

    c_i >= threshold
    c_j >= 1 - factor / (j + 1) for all j <= i        (theorem 1 there)

Two options of LLaDA's own code against answers that end too soon: logits_eos_inf never takes the end-of-text token;
confidence_eos_eot_inf commits tokens that end the text after all others of the block.

Logits are needed for the current block only, and are turned to float32 before guidance and softmax whatever
the model computes in: ties of 16-bit confidences break differently for a quantized model and its original.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, get_args

import torch
from torch import Tensor

from qspec.errors import NumericsError, UsageError
from qspec.models.commit import NONE, Sure
from qspec.models.engine import Runner
from qspec.models.likeliest import confidence as rate
from qspec.models.samplers.cached import Cache, check_cache
from qspec.models.samplers.canvas import Canvas, Pass
from qspec.models.samplers.common import (
    HEAD_VALUES,
    Denoiser,
    check_finite,
    check_positive,
    check_seed,
    likeliest,
    token_logits,
    without,
)
from qspec.models.samplers.run import Rows, Run, Steps

Remasking = Literal["low_confidence", "random"]
LAST = -1.0  # a confidence below all others, which are probabilities


@dataclass(frozen=True)
class SamplerSettings:
    """length: tokens to generate. steps: forwards in all, at most. block: tokens of one block. cfg: guidance scale s.
    cache: None computes every step in full. threshold, factor: of parallel commits, one of them. stop: of a row that
    has a token that ends the text, blocks behind it are filled with the end-of-text token, and not computed.

    Errors: UsageError unless block divides length, the number of blocks divides steps, and steps <= length; for values
    out of their range, and for parallel commits by random confidences.
    """

    length: int
    steps: int
    block: int
    temperature: float = 0.0
    remasking: Remasking = "low_confidence"
    cfg: float = 0.0
    seed: int = 0
    cache: Cache | None = None
    threshold: float | None = None
    factor: float | None = None
    logits_eos_inf: bool = False
    confidence_eos_eot_inf: bool = False
    stop: bool = False

    def __post_init__(self) -> None:
        check_positive(length=self.length, steps=self.steps, block=self.block)
        if self.length % self.block:
            hint = f"try block {_nearest_divisor(self.length, self.block)}"
            raise UsageError(f"length {self.length} is not a multiple of block {self.block}", hint=hint)
        if self.steps % self.blocks:
            what = f"steps {self.steps} is not a multiple of the {self.blocks} blocks"
            near = max(self.blocks, self.steps // self.blocks * self.blocks)
            raise UsageError(what, hint=f"try steps {near}: every block takes the same number of steps")
        if self.steps > self.length:
            what = f"steps {self.steps} is more than length {self.length}"
            raise UsageError(what, hint=f"every step commits a token, so {self.length} steps are enough")
        if self.remasking not in get_args(Remasking):
            hint = f"choose one of {', '.join(get_args(Remasking))}"
            raise UsageError(f"unknown remasking {self.remasking!r}", hint=hint)
        check_finite(temperature=self.temperature, cfg=self.cfg)
        check_seed(self.seed)
        check_cache(self.cache)
        self._check_parallel()

    def _check_parallel(self) -> None:
        if self.threshold is not None and self.factor is not None:
            raise UsageError("threshold and factor are two rules for parallel commits", hint="give one of them")
        if self.threshold is not None and not 0 < self.threshold <= 1:
            raise UsageError(f"threshold is {self.threshold}; it must lie above 0 and up to 1")
        if self.factor is not None and not 0 < self.factor < float("inf"):
            raise UsageError(f"factor is {self.factor}; it must be a finite number above 0")
        if self.parallel and self.remasking == "random":
            raise UsageError("parallel commits need confidences", hint="leave remasking out")

    @property
    def parallel(self) -> bool:
        return self.threshold is not None or self.factor is not None

    @property
    def sure(self) -> Sure:
        """What parallel commits take."""
        if self.factor is not None:
            return Sure(1.0, self.factor)
        return NONE if self.threshold is None else Sure(self.threshold)

    @property
    def key(self) -> Hashable:
        """All that a step depends on."""
        ends = (self.logits_eos_inf, self.confidence_eos_eot_inf)
        return ("llada", self.block, self.temperature, self.remasking, self.cfg, self.sure, ends)

    @property
    def blocks(self) -> int:
        return self.length // self.block

    def commits(self) -> tuple[int, ...]:
        """Tokens that each step of one block commits; they add up to the block."""
        base, extra = divmod(self.block, self.steps // self.blocks)
        return tuple(base + (step < extra) for step in range(self.steps // self.blocks))


def fill(runner: Runner, rows: Rows, settings: SamplerSettings) -> Steps:
    """Fills the masks of the rows, step by step."""
    run = Run(runner, rows, settings.seed, cache=settings.cache, guided=settings.cfg > 0)
    ends, index = run.model.shape.ends, 0
    for first in range(0, settings.length, settings.block):
        run.block(first, settings.block)
        for count in settings.commits():
            run.canvas.count.fill_(count)
            *decided, masks = run.step(index, settings.key, partial(_step, run.model, settings))
            yield run.decided(index, first, decided)
            index += 1
            if settings.parallel and not bool(masks.any()):
                break
        run.canvas.check(run.model, _too_far(settings))
        through = first + settings.block
        if settings.stop and run.leave(
            _among(run.text()[:, :through], ends).any(1), through, run.model.shape.eos_token
        ):
            break
    return run.finish()


def _step(model: Denoiser, settings: SamplerSettings, canvas: Canvas, part: Pass) -> tuple[Tensor, ...]:
    """What is chosen, the tokens and their confidences [b, block], and whether masks are left [b]."""
    places = canvas.places(settings.block)
    tokens, confidence = _predicted(model, settings, canvas, places, part)
    if settings.confidence_eos_eot_inf:
        confidence = confidence.masked_fill(_among(tokens, model.shape.ends), LAST)
    chosen, masks = canvas.commit(model, tokens, confidence, canvas.count, settings.sure)
    return chosen, tokens, confidence, masks


def _predicted(
    model: Denoiser, settings: SamplerSettings, canvas: Canvas, places: Tensor, part: Pass
) -> tuple[Tensor, Tensor]:
    """x0 int64 and confidence float32 [b, block]."""
    hidden = canvas.predicting(model, places, part)
    size = max(1, HEAD_VALUES // (model.shape.vocab * len(hidden)))
    found = []
    for start in range(0, settings.block, size):
        some = slice(start, start + size)
        found.append(_chosen(model, settings, canvas, hidden[:, some], places[:, some]))
    if len(found) == 1:
        return found[0]
    tokens, confidence = (torch.cat(parts, dim=1) for parts in zip(*found, strict=True))
    return tokens, confidence


def _chosen(
    model: Denoiser, settings: SamplerSettings, canvas: Canvas, hidden: Tensor, places: Tensor
) -> tuple[Tensor, Tensor]:
    """x0 and confidence [b, n] of hidden [b, n, d]."""
    if settings.temperature == 0 and settings.cfg == 0:
        barred = without(model, model.shape.eos_token) if settings.logits_eos_inf else None
        tokens, confidence = likeliest(model, hidden, "probability", canvas.logits_finite, barred)
    else:
        logits = _logits(model, settings, canvas, hidden)
        if settings.logits_eos_inf:
            logits[..., model.shape.eos_token] = torch.finfo(torch.float32).min
        tokens = _choose(logits, settings.temperature, canvas, places)
        confidence = rate(logits.softmax(-1), tokens, "probability")
    if settings.remasking == "random":
        confidence = canvas.uniform(places, "place").float()
    return tokens, confidence


def _among(tokens: Tensor, chosen: Sequence[int]) -> Tensor:
    """bool, like tokens: whether each is one of the chosen."""
    return torch.stack([tokens == one for one in chosen]).any(0)


def _logits(model: Denoiser, settings: SamplerSettings, canvas: Canvas, hidden: Tensor) -> Tensor:
    """float32 logits [b, n, vocab] of hidden [b, n, d], with guidance of [2 b, n, d]."""
    logits = token_logits(model, hidden, canvas.logits_finite)
    if settings.cfg == 0:
        return logits
    logits, unguided = logits.chunk(2)
    guided = unguided + (settings.cfg + 1) * (logits - unguided)
    canvas.guided_finite.logical_and_(guided.isfinite().all())
    return guided


def _too_far(settings: SamplerSettings) -> NumericsError:
    return NumericsError(f"guidance takes the logits out of float32's range at cfg {settings.cfg:g}", hint="lower cfg")


def _choose(logits: Tensor, temperature: float, canvas: Canvas, places: Tensor) -> Tensor:
    """x0 [b, n]; exp(l) / (-log u)^T is replaced by its logarithm: the same argmax, and no overflow."""
    if temperature == 0:
        return logits.argmax(-1)
    u = canvas.uniform(places, "token", logits.shape[-1])
    return (logits.double() - u.log_().neg_().log_().mul_(temperature)).argmax(-1)


def _nearest_divisor(length: int, block: int) -> int:
    return max(size for size in range(1, min(block, length) + 1) if length % size == 0)
