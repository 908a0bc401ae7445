"""SmoothQuant (arXiv 2211.10438): outliers move from activations into weights, by a scale for each input channel."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite

import torch
from torch import Tensor

from qspec import numerics, precision
from qspec.errors import NumericsError
from qspec.passes import statistics
from qspec.passes.block import Block
from qspec.passes.linear import Linear
from qspec.passes.observed import Site
from qspec.passes.parameters import Smooth

SMALLEST = 2.0**-24  # of the largest channel: beside it, float32 sees no less
SEARCHED = tuple(step / 20 for step in range(6, 20))  # 0.3, 0.35, .. 0.95
SEARCH_TOKENS = 16384  # calibration tokens that alpha is searched on, in whole batches


def rewrite(params: Smooth, block: Block, uses: tuple[Linear, ...]) -> None:
    """x, W --> x / s, W s: s_j = max|X_j|^alpha / max|W_j|^(1 - alpha)  (arXiv 2211.10438, eq. 4).

    max|W_j| runs over all linears that read the input. 1 / s is folded into what produces the input (a norm's gain, the
    rows of v for o, the rows of up for down), so nothing is computed online. A linear that reads the same input
    without being selected absorbs s too: the function is preserved.

    With alpha = search, each site takes the alpha of 0.3, 0.35, .. 0.95 with the least error behind the scheme's own
    formats for weights and activations, over calibration tokens t with weights c and the selected linears:

        sum_linears sum_t c_t ||x_t W^T - round(x_t / s) round(W s)^T||^2

    Where we differ: the paper's code bounds max|W_j| and s_j by an absolute 1e-5, which depends on the unit of X. Here
    the bound of max|W_j| is 2^-24 of the largest column's, and a channel that is active less than 2^-24 of the most
    active one, or never, gets the geometric mean of the others' scales: it stays what it is beside them.

    Smooths the inputs of the selected linears, in forward order.
    """
    for site in block.sites(uses):
        alpha = best_alpha(block, site, uses) if params.alpha == "search" else params.alpha
        block.rescale_input(site.name, scale_of(block, site, alpha))


def scale_of(block: Block, site: Site, alpha: float) -> Tensor:
    """s float32 [in] of `rewrite`'s docstring; ones where no channel is ever active or all weights are zero."""
    peak = block.observed.statistics(site.name).peaks
    columns = torch.stack([linear.weight.abs().amax(0) for linear in site.linears]).amax(0)
    live = peak > SMALLEST * peak.amax()
    if not bool(live.any()) or not bool(columns.any()):
        return torch.ones_like(peak)
    scale = peak.pow(alpha) / columns.clamp(min=SMALLEST * float(columns.amax())).pow(1 - alpha)
    return torch.where(live, scale, scale[live].log().mean().exp())


def best_alpha(block: Block, site: Site, uses: Sequence[Linear]) -> float:
    """The alpha of SEARCHED with the least error; the smallest of equals.

    Raises NumericsError where one of the errors is not finite.
    """
    rows = [part.rows for part in block.observed.sampled(site.name, SEARCH_TOKENS)]
    scales = {alpha: block.shared(site.name, scale_of(block, site, alpha)) for alpha in SEARCHED}
    errors = dict.fromkeys(SEARCHED, 0.0)
    with precision.fast_products():
        for linear in (linear for linear in site.linears if linear in uses):
            exact = [x @ linear.weight.T for x, _ in rows]
            for alpha, scale in scales.items():
                scaled = linear.weight * scale
                where = str(linear.entry.role)
                rounded = numerics.quantize_weight(scaled, linear.formats.weights, where=where).dequantize()
                for (x, weight), y in zip(rows, exact, strict=True):
                    errors[alpha] += statistics.weighted_square(y - linear.rounded_input(x / scale) @ rounded.T, weight)
    if not all(isfinite(error) for error in errors.values()):
        raise NumericsError(
            "the output error of an alpha is NaN or Inf",
            where=f"blocks[{block.index}].{site.name}",
            hint="the calibration inputs overflow here: give alpha as a number",
        )
    return min(SEARCHED, key=lambda alpha: errors[alpha])
