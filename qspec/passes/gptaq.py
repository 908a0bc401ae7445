"""GPTAQ (arXiv 2504.02692): GPTQ that also makes up for the rounding of everything before this linear."""

from __future__ import annotations

from torch import Tensor

from qspec.passes import gptq, statistics
from qspec.passes.block import Block
from qspec.passes.linear import Linear
from qspec.passes.parameters import Gptaq


def rewrite(params: Gptaq, block: Block, uses: tuple[Linear, ...]) -> None:
    """W --> codes(W) with least ||W X_fp - W^ X||^2  (arXiv 2504.02692, algorithm 1).

    X is what the linear will multiply: its input behind quantized blocks and linears, transformed and rounded to the
    scheme's activations; X_fp is what it would be had nothing been rounded. With dX = X_fp - X, tokens in rows with
    weights c, H = 2 X^T diag(c) X / sum(c), D = 2 dX^T diag(c) X / sum(c), H^-1 = U^T U:

        P = ((D U^T) * strictly upper ones) U
        for each column j:  q = round(w_j), e = (w_j - q) / U_jj,  W[:, j+1:] += w_j P[j, j+1:] - e U[j, j+1:]

    So each column, once rounded, moves the later ones to the damped least squares fit of its exact output w_j x_fp,j.
    As in the paper's code with its `enable_aq_calibration`, which its scripts set, X holds the rounding of activations,
    so that the weights make up for that too. Where we differ: that code multiplies P by 0.25, which the paper does not
    have and its authors call an empirical choice (issue 4 of their repository), `strength` here; and past a block of
    columns it takes q_j for w_j in w_j P.

    Site by site in forward order, as `gptq`; linears that round their input differently are solved apart.
    """
    for site in block.sites(uses):
        for group in site.by_transform(uses):
            for activations in dict.fromkeys(linear.formats.activations for linear in group):
                alike = [linear for linear in group if linear.formats.activations == activations]
                hessian, cross = products(block, alike[0])
                symmetric = gptq.prepare(hessian, params.order, params.damp, site.name)
                asymmetry = params.strength * asymmetry_of(cross, symmetric)
                gptq.quantize_group(alike, symmetric._replace(asymmetry=asymmetry), params.block)


def products(block: Block, linear: Linear) -> tuple[Tensor, Tensor]:
    """H and D of `rewrite`'s docstring, float32 [in, in], for what `linear` reads as it prepares it."""
    count = 0.0
    hessian: Tensor | None = None
    cross: Tensor | None = None
    for x, exact, tokens in block.observed.paired_inputs(*linear.input):
        ready = linear.rounded_input(x)
        difference = linear.transformed(exact) - ready
        count += float(tokens.weight.sum())
        own = statistics.weighted_product(ready, ready, tokens.weight)
        other = statistics.weighted_product(difference, ready, tokens.weight)
        hessian = own if hessian is None else hessian.add_(own)
        cross = other if cross is None else cross.add_(other)
    assert hessian is not None
    assert cross is not None
    return hessian.mul_(2 / count), cross.mul_(2 / count)


def asymmetry_of(cross: Tensor, elimination: gptq.Elimination) -> Tensor:
    """P [in, in] float32 in the elimination's order, from D [in, in] in natural order."""
    d = cross[elimination.order[:, None], elimination.order].double()
    u = elimination.factor.double()
    return ((d @ u.T).triu(1) @ u).float()
