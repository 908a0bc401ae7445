"""GPTQ (arXiv 2210.17323): columns are rounded one by one, each error is spread over the columns still to come."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from annotated_types import Ge, Gt, Le, Lt

from qspec.errors import NumericsError
from qspec.language.spec import Fact, Pass
from qspec.lazy import LazyModule

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch
    from torch import Tensor

    from qspec import numerics
    from qspec.formats import TensorFormat
    from qspec.passes.block import Block, Linear
else:
    torch = LazyModule("torch")
    numerics = LazyModule("qspec.numerics")


@dataclass(frozen=True)
class Gptq(Pass):
    """W --> codes(W) with least ||(W - W^) X||^2, column by column (arXiv 2210.17323, algorithm 1).

    H = 2 X^T diag(c) X / sum(c) over the calibration inputs X [n, in] with the tokens' weights c, damped by
    damp * mean(diag H); U = upper Cholesky factor of H^-1. For each column j: q = round(w_j), e = (w_j - q) / U_jj,
    W[:, j:] -= e U[j, j:]. Inputs are those that the block sees with its earlier linears already quantized.

    Scales are fixed from the whole W before the first column (static groups), with the scheme's clip or a searched one,
    so activation order costs nothing at run time.

    Parameters: damp; order, "activation" (largest diag H first) or "natural"; block, columns of a lazy update.
    """

    damp: Annotated[float, Gt(0), Lt(1)] = 0.01
    order: Literal["activation", "natural"] = "activation"
    block: Annotated[int, Ge(1), Le(4096)] = 128

    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.FLOAT_WEIGHTS})
    establishes: ClassVar[frozenset[Fact]] = frozenset({Fact.CODES})
    clears: ClassVar[frozenset[Fact]] = frozenset({Fact.FLOAT_WEIGHTS})
    quantizes: ClassVar[bool] = True

    def rewrite(self, block: Block, uses: tuple[Linear, ...]) -> None:
        """Site by site in forward order, so that later inputs carry the rounding of earlier linears."""
        for site in block.sites(uses):
            for group in site.by_transform(uses):
                order, factor = prepare(block.hessian(site.name, group[0].transform), self.order, self.damp, site.name)
                quantize_group(group, order, factor, self.block)


def prepare(hessian: Tensor, by: str, damp: float, where: str) -> tuple[Tensor, Tensor]:
    """Column order [in] and U [in, in], float32, upper triangular in that order: H^-1 = U^T U of the damped H.

    by: "activation", largest diag H first, or "natural". With P the reversal of the order and P H P = L L^T, U is
    P L^-1 P: one factorisation and one triangular inverse, in float64, and H^-1 is never formed.
    Raises NumericsError where H stays singular or not finite after damping.
    """
    h = hessian.double()
    diagonal = h.diagonal()
    diagonal[diagonal == 0] = 1.0  # a channel that is never active: its weights are rounded alone
    order = (
        diagonal.argsort(descending=True, stable=True)
        if by == "activation"
        else torch.arange(h.shape[0], device=h.device)
    )
    diagonal.add_(damp * diagonal.mean())
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
    return order, inverse.flip(0, 1).float()


def quantize_group(
    group: Sequence[Linear], order: Tensor, factor: Tensor, block: int, pull: Tensor | None = None
) -> None:
    """Quantizes linears that read one prepared input; rows of equal formats go through the column loop together."""
    for fmt in dict.fromkeys(linear.formats.weights for linear in group):
        alike = [linear for linear in group if linear.formats.weights == fmt]
        grids = [numerics.weight_scales(linear.weight, fmt, linear.clip) for linear in alike]
        scale = torch.cat([scale for scale, _ in grids])
        zero = None if fmt.symmetric else torch.cat([zero for _, zero in grids if zero is not None])
        codes = round_columns(
            torch.cat([linear.weight for linear in alike]), scale, zero, fmt, order, factor, block, pull
        )
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
    order: Tensor,
    factor: Tensor,
    block: int,
    pull: Tensor | None = None,
) -> Tensor:
    """Codes int8 of W [out, in] on fixed scales [out, groups], with U [in, in] in column order `order`.

    pull: P [in, in] of GPTAQ in the same order, strictly upper triangular: with it each column j also moves the later
    ones by + W[:, j] P[j, :], W[:, j] as it was when its turn came. Updates beyond `block` columns are made together.
    """
    groups = (order // fmt.group(weight.shape[1])).tolist()
    diagonal = factor.diagonal().tolist()
    w = weight[:, order]
    codes = torch.empty_like(w, dtype=torch.int8)
    for start in range(0, w.shape[1], block):
        end = min(start + block, w.shape[1])
        errors = torch.empty_like(w[:, start:end])
        for j in range(start, end):
            g = slice(groups[j], groups[j] + 1)
            s, z = scale[:, g], None if zero is None else zero[:, g]
            column = w[:, j : j + 1]
            q = numerics.encode(column, s, z, fmt.number)
            codes[:, j : j + 1] = q
            error = (column - numerics.dequantize(q, s, z)) / diagonal[j]
            w[:, j + 1 : end] -= error * factor[j, j + 1 : end]
            if pull is not None:
                w[:, j + 1 : end] += column * pull[j, j + 1 : end]
            errors[:, j - start] = error[:, 0]
        w[:, end:] -= errors @ factor[start:end, end:]
        if pull is not None:
            w[:, end:] += w[:, start:end] @ pull[start:end, end:]
    restored = torch.empty_like(codes)
    restored[:, order] = codes
    return restored
