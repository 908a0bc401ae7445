"""What is known of an input on the calibration data: peaks and means, masked and visible positions apart, and sums."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from qspec.models.routing import Routing
from qspec.precision import exact_products

SAMPLE_ROWS = 256  # tokens of an input that are kept for searches
TOP_ROWS_SHARE = 4  # one in four sampled rows is among those with the largest peak, the rest are drawn at random


class Tokens(NamedTuple):
    """What is known of the tokens of one batch: masked bool [tokens]; weight float32 [tokens], above 0; routing, where
    it was asked for."""

    masked: Tensor
    weight: Tensor
    routing: Routing | None = None


@dataclass(frozen=True)
class Moments:
    """Of an input X over some tokens. peaks: max |X_j|, float32 [in]. mean: mean |X_j| by the tokens' weights, float32
    [in]. weight: the sum of those weights. All zero where there are no such tokens.
    """

    peaks: Tensor
    mean: Tensor
    weight: float

    def scaled(self, factor: Tensor) -> Moments:
        return Moments(self.peaks * factor, self.mean * factor, self.weight)


@dataclass(frozen=True)
class Statistics:
    """Of a site's inputs X, with masked and visible positions apart.

    rows: float32 [rows, in], inputs at tokens drawn at random and at those with the largest peaks.
    """

    masked: Moments
    visible: Moments
    rows: Tensor

    @property
    def peaks(self) -> Tensor:
        """max |X_j| over all tokens, float32 [in]."""
        return torch.maximum(self.masked.peaks, self.visible.peaks)

    @property
    def mean(self) -> Tensor:
        """mean |X_j| over all tokens by their weights, float32 [in]."""
        parts = (self.masked, self.visible)
        total = sum(part.weight for part in parts)
        return torch.stack([part.mean * (part.weight / total) for part in parts]).sum(0)

    def scaled(self, factor: Tensor) -> Statistics:
        """Of X times factor [in]."""
        return Statistics(self.masked.scaled(factor), self.visible.scaled(factor), self.rows * factor)


def weighted_product(x: Tensor, y: Tensor, weight: Tensor) -> Tensor:
    """X^T diag(c) Y, float32 [in, in], for X, Y [tokens, in] and c [tokens]."""
    with exact_products():
        return (x * weight[:, None]).T @ y


def weighted_square(y: Tensor, weight: Tensor) -> float:
    """sum_t c_t ||y_t||^2 for y [..., out] and c [...]."""
    return float((y.square().sum(-1) * weight).sum(dtype=torch.float64))


class Observer:
    """Takes statistics of the inputs that it observes over `batches` batches."""

    def __init__(self, batches: int, generator: torch.Generator) -> None:
        self.top = SAMPLE_ROWS // TOP_ROWS_SHARE
        self.each = -(-(SAMPLE_ROWS - self.top) // batches)
        self.generator = generator
        self.drawn: list[Tensor] = []
        self.largest: Tensor | None = None
        self.parts: dict[str, list[Moments]] = {"masked": [], "visible": []}

    def observe(self, x: Tensor, tokens: Tokens) -> None:
        x = x.float()
        for name, chosen in (("masked", tokens.masked), ("visible", ~tokens.masked)):
            self.parts[name] = [_merged([*self.parts[name], _moments(x, tokens.weight * chosen)])]
        chosen = torch.randperm(x.shape[0], generator=self.generator)[: self.each]
        self.drawn.append(x[chosen.to(x.device)])
        pool = x if self.largest is None else torch.cat([self.largest, x])
        order = pool.abs().amax(1).argsort(descending=True, stable=True)  # of equals the first, on every device
        self.largest = pool[order[: self.top]]

    def statistics(self) -> Statistics:
        assert self.largest is not None
        (masked,), (visible,) = self.parts["masked"], self.parts["visible"]
        return Statistics(masked, visible, torch.cat([*self.drawn, self.largest])[-SAMPLE_ROWS:])


def _moments(x: Tensor, weight: Tensor) -> Moments:
    """Of the tokens of X [tokens, in] whose weight [tokens] is above 0."""
    size = x.abs()
    total = float(weight.sum())
    counted = size * (weight > 0)[:, None]
    return Moments(counted.amax(0), weight @ size / total if total else torch.zeros_like(x[0]), total)


def _merged(parts: list[Moments]) -> Moments:
    total = sum(part.weight for part in parts)
    share = [part.weight / total if total else 0.0 for part in parts]
    mean = torch.stack([part.mean * s for part, s in zip(parts, share, strict=True)]).sum(0)
    return Moments(torch.stack([part.peaks for part in parts]).amax(0), mean, total)
