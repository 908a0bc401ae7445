"""Dream's sampler (arXiv 2508.15487 and its published code): the whole answer is one canvas of masks.

Times fall from t_0 = 1 to t_S = 1e-3 in S equal steps. In step i a mask goes to text with probability
1 - t_(i+1) / t_i, in the last one surely. For each position that is still a mask,

    p          = softmax of l / T, of which top-p keeps the likeliest tokens up to a share, then top-k the k likeliest
    x0         = argmax p at T = 0, else drawn from p
    confidence = p[x0]                     alg "maskgit_plus"
                 p_1 - p_2                 alg "topk_margin", the two largest
                 sum p log(p + 1e-10)      alg "entropy"

and the k = int(m (1 - t_(i+1) / t_i)) most confident positions of each row are committed, m the mean number of
masks in a row, or all m in the last step. alg_temp > 0 draws the k positions without replacement from
softmax(confidence / alg_temp) instead. alg "origin" moves every mask by a coin of its own and knows no confidence.

As in the published code m (1 - t_(i+1) / t_i) lies just below a whole number in the first step, so that with S =
length the first step commits nothing and the last one two tokens. Unlike it, a row with fewer masks than k leaves
its decided tokens alone, random numbers are functions of seed, step, row and position, the same on every device
(`noise`), and probabilities are float32 whatever the model computes in. There are no blocks and no guidance; the text
is one block to a cache (`cached`), which keeps the prompt.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from functools import partial
from typing import Literal, get_args

import torch
from torch import Tensor

from qspec.errors import UsageError
from qspec.models.commit import EVERY, NONE
from qspec.models.engine import Runner
from qspec.models.likeliest import Measure
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
)
from qspec.models.samplers.run import Rows, Run, Steps

Alg = Literal["origin", "maskgit_plus", "topk_margin", "entropy"]
MEASURES: dict[Alg, Measure] = {"topk_margin": "margin", "entropy": "entropy"}  # others by the token's probability
EPS = 1e-3
CHECKED = 16  # steps after which it is asked whether all logits were finite, and how many masks are left


@dataclass(frozen=True)
class DreamSettings:
    """length: tokens to generate. steps: forwards. top_p 1 and top_k None keep every token.
    cache: None computes every step in full, "prefix" keeps the prompt's keys and values of the first.

    alg "entropy" is what Dream's published evaluations use. Errors: UsageError for a value out of its range.
    """

    length: int
    steps: int
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int | None = None
    alg: Alg = "entropy"
    alg_temp: float = 0.0
    seed: int = 0
    cache: Cache | None = None

    def __post_init__(self) -> None:
        check_positive(length=self.length, steps=self.steps)
        if self.alg not in get_args(Alg):
            raise UsageError(f"unknown alg {self.alg!r}", hint=f"choose one of {', '.join(get_args(Alg))}")
        check_finite(temperature=self.temperature, alg_temp=self.alg_temp)
        if not 0 < self.top_p <= 1:
            raise UsageError(f"top_p is {self.top_p}; it must lie above 0 and up to 1")
        if self.top_k is not None:
            check_positive(top_k=self.top_k)
        if self.alg == "origin" and self.alg_temp:
            raise UsageError("alg_temp is set, and alg origin has no confidence", hint="leave alg_temp out")
        check_seed(self.seed)
        check_cache(self.cache)
        if self.cache == "dual":
            what = "cache is dual, and nothing follows the text of the dream sampler"
            raise UsageError(what, hint="prefix keeps the prompt")

    @property
    def key(self) -> Hashable:
        """All that a step depends on."""
        chance = (self.temperature, self.top_p, self.top_k)
        return ("dream", self.length, chance, self.alg, self.alg_temp)

    def shares(self) -> tuple[float, ...]:
        """1 - t_(i+1) / t_i of every step but the last, in float32 as published; 1 in the last."""
        times = torch.linspace(1, EPS, self.steps + 1, device="cpu")
        return (*(1 - times[1:-1] / times[:-2]).tolist(), 1.0)


def fill(runner: Runner, rows: Rows, settings: DreamSettings) -> Steps:
    """Fills the masks of the rows, step by step."""
    run = Run(runner, rows, settings.seed, cache=settings.cache)
    run.block(0, settings.length)
    most = settings.length
    for index, share in enumerate(settings.shares()):
        run.canvas.share.fill_(share)
        decided = run.step(index, (settings.key, most), partial(_step, run.model, settings, most))
        yield run.decided(index, 0, decided)
        if index % CHECKED == CHECKED - 1:
            run.canvas.check(run.model)
            masks = int((run.text() == run.model.shape.mask_token).sum(1).max())
            most = min(most, max(1, runner.length(masks)))
    run.canvas.check(run.model)
    return run.finish()


def _step(model: Denoiser, settings: DreamSettings, most: int, canvas: Canvas, part: Pass) -> tuple[Tensor, ...]:
    """What is chosen, the tokens and their confidences [b, length].

    most: masks of a row, at most.
    """
    places = canvas.places(settings.length)
    masked = canvas.ids.gather(1, places) == model.shape.mask_token
    masks = masked.to(torch.int8).argsort(dim=1, descending=True, stable=True)[:, :most]  # and others behind them
    tokens, confidence = _predicted(model, settings, canvas, masks, part)
    confidence = confidence.masked_fill(~masked, -torch.inf)
    if settings.alg == "origin":
        drawn_places = canvas.uniform(places, "place") < canvas.share
        order, count, sure = torch.where(drawn_places, 0.0, -torch.inf), canvas.count, EVERY
    else:
        order, sure = _order(confidence, settings.alg_temp, canvas, places), NONE
        count = (masked.sum() / len(masked) * canvas.share).long()  # float32 all, as published
    chosen, _ = canvas.commit(model, tokens, order, count, sure)
    return chosen, tokens, confidence


def _predicted(
    model: Denoiser, settings: DreamSettings, canvas: Canvas, masks: Tensor, part: Pass
) -> tuple[Tensor, Tensor]:
    """x0 int64 and confidence float32 [b, length] at the `masks` [b, most], places in the text; elsewhere the text as
    it is."""
    every = canvas.places(settings.length)
    places = every.gather(1, masks)
    hidden = canvas.predicting(model, places, part)
    tokens, confidence = canvas.ids.gather(1, every), torch.zeros(every.shape, device=every.device)
    size = max(1, HEAD_VALUES // (model.shape.vocab * len(masks)))
    for start in range(0, masks.shape[1], size):
        some = slice(start, start + size)
        chosen, sure = _chosen(model, settings, canvas, hidden[:, some], places[:, some])
        tokens.scatter_(1, masks[:, some], chosen)
        confidence.scatter_(1, masks[:, some], sure)
    return tokens, confidence


def _chosen(
    model: Denoiser, settings: DreamSettings, canvas: Canvas, hidden: Tensor, places: Tensor
) -> tuple[Tensor, Tensor]:
    """x0 and confidence [b, n] of hidden [b, n, d]; for "origin", which does not use it, the token's probability."""
    measure = MEASURES.get(settings.alg, "probability")
    if settings.temperature == 0 and settings.top_p == 1 and settings.top_k is None:
        return likeliest(model, hidden, measure, canvas.logits_finite)
    logits = token_logits(model, hidden, canvas.logits_finite)
    p = probabilities(logits, settings.temperature, settings.top_p, settings.top_k)
    chosen = drawn(p, canvas.uniform(places, "token")) if settings.temperature > 0 else p.argmax(-1)
    return chosen, rate(p, chosen, measure)


def probabilities(logits: Tensor, temperature: float, top_p: float, top_k: int | None) -> Tensor:
    """p [..., vocab] of logits [..., vocab]: temperature, then top-p, then top-k, then softmax.

    Top-p keeps the likeliest tokens through the first whose running sum exceeds top_p; top-k keeps the tokens
    that are no less likely than the k-th.
    """
    if temperature > 0:
        logits = (logits - logits.amax(-1, keepdim=True)) / temperature  # no overflow at small temperatures
    if top_p < 1:
        ordered, places = logits.sort(dim=-1, descending=True, stable=True)
        before = ordered.softmax(-1).cumsum(-1).roll(1, dims=-1)  # the sum without the token itself
        before[..., 0] = 0
        logits = logits.masked_fill((before > top_p).gather(-1, places.argsort(-1)), -torch.inf)
    if top_k is not None and top_k < logits.shape[-1]:
        logits = logits.masked_fill(logits < logits.topk(top_k).values[..., -1:], -torch.inf)
    return logits.softmax(-1)


def drawn(p: Tensor, u: Tensor) -> Tensor:
    """A token for each row of p [..., vocab], by its running sum in float64; u ~ U(0, 1) [...]."""
    running = p.double().cumsum(-1)
    token = torch.searchsorted(running, (u * running[..., -1]).unsqueeze(-1), right=True).squeeze(-1)
    return token.clamp(max=p.shape[-1] - 1)


def _order(confidence: Tensor, alg_temp: float, canvas: Canvas, places: Tensor) -> Tensor:
    """What positions are ordered by. The largest of c / T - log(-log u) are draws from softmax(c / T) without
    replacement (Gumbel's trick, arXiv 1903.06059)."""
    if alg_temp == 0:
        return confidence
    return confidence.double() / alg_temp - (-canvas.uniform(places, "place").log()).log()
