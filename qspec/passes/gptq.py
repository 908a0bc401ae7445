"""GPTQ (arXiv 2210.17323): columns are rounded one by one, each error is spread over the columns still to come."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import NamedTuple

import torch
from torch import Tensor

from qspec import numerics
from qspec.errors import NumericsError
from qspec.formats import NumberFormat, TensorFormat
from qspec.passes.block import Block
from qspec.passes.linear import Linear
from qspec.passes.parameters import Gptq


def rewrite(params: Gptq, block: Block, uses: tuple[Linear, ...]) -> None:
    """W --> codes(W) with least ||(W - W^) X||^2, column by column (arXiv 2210.17323, algorithm 1).

    H = 2 X^T diag(c) X / sum(c) over the calibration inputs X [n, in] with the tokens' weights c, damped by
    damp * mean(diag H) over the channels that are ever active; U = upper Cholesky factor of H^-1. For each column j:
    q = round(w_j), e = (w_j - q) / U_jj, W[:, j:] -= e U[j, j:]. Inputs are those that the block sees with its earlier
    linears already quantized.

    Where we differ: the paper's code puts 1 for the zero on the diagonal of a channel that is never active before it
    takes the mean, so that its damping depends on the unit of X, and sets the channel's weights to zero. Here such a
    channel counts in no mean, and its weights are rounded alone: other text may use it.

    Scales are fixed from the whole W before the first column (static groups), with the scheme's clip or a searched one,
    so activation order costs nothing at run time.

    Site by site in forward order, so that later inputs carry the rounding of earlier linears.
    """
    for group, hessian in block.observed.hessians(uses):
        quantize_group(group, prepare(hessian, params.order, params.damp, group[0].input.site), params.block)


class Elimination(NamedTuple):
    """The order [in] in which columns are rounded, and how the error of each is spread over the later ones.

    factor: U [in, in] float32 in that order, upper triangular, H^-1 = U^T U. asymmetry: P [in, in] of GPTAQ in the same
    order, strictly upper triangular: with it each column j also moves the later ones by + W[:, j] P[j, :], W[:, j] as
    it was when its turn came.
    """

    order: Tensor
    factor: Tensor
    asymmetry: Tensor | None = None


def prepare(hessian: Tensor, by: str, damp: float, where: str) -> Elimination:
    """The elimination of the damped H [in, in].

    by: "activation", largest diag H first, or "natural". With P the reversal of the order and P H P = L L^T, U is
    P L^-1 P: one factorisation and one triangular inverse, in float64, and H^-1 is never formed.
    Raises NumericsError where H stays singular or not finite after damping.
    """
    h = hessian.double()
    diagonal = h.diagonal()
    live = diagonal != 0
    mean = diagonal[live].mean() if bool(live.any()) else 1.0
    diagonal[~live] = mean  # its row and column are zeros, so that any size leaves its weights to be rounded alone
    order = (
        diagonal.argsort(descending=True, stable=True)
        if by == "activation"
        else torch.arange(h.shape[0], device=h.device)
    )
    diagonal.add_(damp * mean)
    backwards = order.flip(0)
    lower, failed = torch.linalg.cholesky_ex(h[backwards[:, None], backwards])
    del h, diagonal
    if int(failed) or not bool(torch.isfinite(lower.diagonal()).all()):
        raise NumericsError(
            "the Hessian is singular or not finite after damping",
            where=where,
            hint=f"raise damp (it is {damp:g}) or calibrate on more samples",
        )
    identity = torch.eye(lower.shape[0], dtype=lower.dtype, device=lower.device)
    inverse = torch.linalg.solve_triangular(lower, identity, upper=False, left=True)
    return Elimination(order, inverse.flip(0, 1).float())


def quantize_group(group: Sequence[Linear], elimination: Elimination, block: int) -> None:
    """Quantizes linears that read one prepared input; rows of equal formats go through the column loop together."""
    for fmt in dict.fromkeys(linear.formats.weights for linear in group):
        alike = [linear for linear in group if linear.formats.weights == fmt]
        grids = [numerics.weight_scales(linear.weight, fmt, linear.clip, str(linear.entry.role)) for linear in alike]
        scale = torch.cat([scale for scale, _ in grids])
        zero = None if fmt.symmetric else torch.cat([zero for _, zero in grids if zero is not None])
        weight = torch.cat([linear.weight for linear in alike])
        codes = round_columns(weight, scale, zero, fmt, elimination, block)
        first = 0
        for linear, (own, own_zero) in zip(alike, grids, strict=True):
            last = first + own.shape[0]
            linear.quantized = numerics.Quantized(codes[first:last], own, own_zero, fmt)
            first = last


def round_columns(
    weight: Tensor,
    scale: Tensor,
    zero: Tensor | None,
    fmt: TensorFormat,
    elimination: Elimination,
    block: int,
) -> Tensor:
    """Codes int8 of W [out, in] on fixed scales [out, groups]. Updates beyond `block` columns are made together."""
    order, factor, asymmetry = elimination
    groups = order // fmt.group(weight.shape[1])
    w = weight[:, order]
    codes = torch.empty_like(w, dtype=torch.int8)
    for start in range(0, w.shape[1], block):
        own = slice(start, min(start + block, w.shape[1]))
        later = slice(own.stop, None)
        inputs = Columns(
            w[:, own],
            scale[:, groups[own]],
            None if zero is None else zero[:, groups[own]],
            factor[own, own],
            None if asymmetry is None else asymmetry[own, own],
        )
        walk = graphed(inputs, fmt.number) if w.device.type == "cuda" else partial(round_some, number=fmt.number)
        codes[:, own], errors, moved = walk(inputs)
        w[:, later] -= errors @ factor[own, later]
        if asymmetry is not None:
            w[:, later] += moved @ asymmetry[own, later]
    restored = torch.empty_like(codes)
    restored[:, order] = codes
    return restored


class Columns(NamedTuple):
    """Some columns of W [out, n] with the scale [out, n] and zero point [out, n] of each, and their U and P [n, n]."""

    weight: Tensor
    scale: Tensor
    zero: Tensor | None
    factor: Tensor
    asymmetry: Tensor | None


def round_some(columns: Columns, number: NumberFormat) -> tuple[Tensor, Tensor, Tensor]:
    """Codes int8, scaled errors e, and the columns as they were when their turn came; each [out, n]."""
    w = columns.weight.clone()
    codes, errors = torch.empty_like(w, dtype=torch.int8), torch.empty_like(w)
    for j in range(w.shape[1]):
        own, later = slice(j, j + 1), slice(j + 1, None)
        s, z = columns.scale[:, own], None if columns.zero is None else columns.zero[:, own]
        q = numerics.encode(w[:, own], s, z, number)
        codes[:, own] = q
        errors[:, own] = (w[:, own] - numerics.dequantize(q, s, z, number)) / columns.factor[j, j]
        w[:, later] -= errors[:, own] * columns.factor[j, later]
        if columns.asymmetry is not None:
            w[:, later] += w[:, own] * columns.asymmetry[j, later]
    return codes, errors, w


def graphed(like: Columns, number: NumberFormat) -> Callable[[Columns], tuple[Tensor, Tensor, Tensor]]:
    """`round_some` as a CUDA graph for inputs of these shapes: its thousands of small kernels are launched as one.

    The graph is recorded once for each shape; what a call returns is overwritten by the next one.
    """
    key = tuple(None if t is None else (t.shape, t.dtype, t.device) for t in like)
    return _graph(key, number)


@lru_cache(maxsize=8)
def _graph(
    key: tuple[tuple[torch.Size, torch.dtype, torch.device] | None, ...], number: NumberFormat
) -> Callable[[Columns], tuple[Tensor, Tensor, Tensor]]:
    weight, scale, zero, factor, asymmetry = (
        None if k is None else torch.ones(k[0], dtype=k[1], device=k[2]) for k in key
    )
    assert weight is not None
    assert scale is not None
    assert factor is not None
    held = Columns(weight, scale, zero, factor, asymmetry)
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        round_some(held, number)  # what a first call allocates and loads may not be recorded
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = round_some(held, number)

    def replay(columns: Columns) -> tuple[Tensor, Tensor, Tensor]:
        for place, value in zip(held, columns, strict=True):
            if place is not None and value is not None:
                place.copy_(value)
        graph.replay()
        return outputs

    return replay
