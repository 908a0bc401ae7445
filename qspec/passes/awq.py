"""AWQ (arXiv 2306.00978): weights grow where inputs are large, so that rounding spares them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from qspec import numerics
from qspec.errors import NumericsError
from qspec.passes import clip, statistics
from qspec.passes.block import Block
from qspec.passes.linear import Linear
from qspec.passes.observed import Site, SiteInput
from qspec.passes.parameters import Awq, ClipSearch

EXPONENTS = 20  # r = 0, 1/20, .. 19/20
LEAST_SHARE = 1e-4  # of the largest mean: what a channel counts as that is active less, or never
NOT_CLIPPED = ("attention.q", "attention.k")


def rewrite(params: Awq, block: Block, uses: tuple[Linear, ...]) -> None:
    """x, W --> x / s, W s: s_j = (mean|X_j|)^r, the r with the least error behind rounded weights  (arXiv 2306.00978).

    s is divided by sqrt(max(s) min(s)). r in {0, .05, .. .95} minimises, over calibration tokens t with weights c,

        sum_t c_t ||F(X; W)_t - F(X; round(W s) / s)_t||^2

    where F is the module that consumes what the selected linears compute: attention for q, k and v, with rotary
    positions and o; the MLP for gate and up; o and down for themselves. Weights are rounded to the scheme's own format,
    everything else is as the model computes it; X is the site's true input. 1 / s is folded into what produces X, as
    `smooth` does. r = 0 is plain rounding, so the error is never larger than that.

    Then, with `clip`, the pass `clip` with its defaults for all but q and k, whose product a softmax consumes. The
    quantizer that follows finds the ratios; q and k keep the scheme's own clip.

    Where we differ from the paper's code: a channel that is never active counts as 1e-4 of the most active one, in
    place of an absolute bound on s; query heads that share a value head share its scale for o.

    Scales the inputs of the selected linears in forward order, then searches their clips.
    """
    for site in block.sites(uses):
        block.rescale_input(site.name, best_scale(block, site, uses, params.tokens))
    if params.clip:
        clip.rewrite(ClipSearch(), block, tuple(linear for linear in uses if linear.entry.role.part not in NOT_CLIPPED))


def best_scale(block: Block, site: Site, uses: Sequence[Linear], tokens: int) -> Tensor:
    """s float32 [in] of `rewrite`'s docstring. Raises NumericsError where no scale gives a finite error."""
    inputs = block.observed.sampled(site.name, tokens)
    exact = [block.observed.consume(site.name, given) for given in inputs]
    mean = block.shared(site.name, block.observed.statistics(site.name).mean)
    best: Tensor | None = None
    least = float("inf")
    for step in range(EXPONENTS):
        scale = scale_of(mean, step / EXPONENTS)
        with _rounded([linear for linear in site.linears if linear in uses], scale):
            error = sum(_error(block, site, given, y) for given, y in zip(inputs, exact, strict=True))
        if error < least:
            best, least = scale, error
    if best is None:
        raise NumericsError(
            "the output error of every scale that AWQ tries is NaN or Inf",
            where=f"blocks[{block.index}].{site.name}",
            hint="the calibration inputs overflow here: leave this layer out of awq",
        )
    return best


def scale_of(mean: Tensor, exponent: float) -> Tensor:
    """mean^r / sqrt(max min) of it, [in]; ones where no channel is ever active."""
    largest = mean.amax()
    if float(largest) == 0:
        return torch.ones_like(mean)
    scale = (mean / largest).clamp(min=LEAST_SHARE).pow(exponent)
    return scale / (scale.amax() * scale.amin()).sqrt()


def _error(block: Block, site: Site, given: SiteInput, exact: Tensor) -> float:
    return statistics.weighted_square(exact.float() - block.observed.consume(site.name, given).float(), given.weight)


@contextmanager
def _rounded(linears: Sequence[Linear], scale: Tensor) -> Iterator[None]:
    """While it lasts, each weight is what rounding of W s makes of it, divided by s."""
    before = [linear.weight for linear in linears]
    try:
        for linear in linears:
            rounded = numerics.quantize_weight(
                linear.weight * scale, linear.formats.weights, where=str(linear.entry.role)
            )
            linear.weight = rounded.dequantize() / scale
        yield
    finally:
        for linear, weight in zip(linears, before, strict=True):
            linear.weight = weight
