"""GPTQ (arXiv 2210.17323): columns are rounded one by one, each error is spread over the columns still to come."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from annotated_types import Ge, Gt, Le, Lt

from qspec.errors import NumericsError
from qspec.language.spec import Fact, Pass
from qspec.lazy import LazyModule

if TYPE_CHECKING:
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

    H = 2 X^T X / n over the calibration inputs X [n, in], damped by damp * mean(diag H); U = upper Cholesky factor of
    H^-1. For each column j: q = round(w_j), e = (w_j - q) / U_jj, W[:, j:] -= e U[j, j:]. Inputs are those that the
    block sees with its earlier linears already quantized.

    Scales are fixed from the whole W before the first column (static groups), so activation order costs nothing at run
    time.

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
                hessian = block.hessian(site.name, group[0].transform)
                order, factor = self.prepare(hessian, site.name)
                for linear in group:
                    linear.quantized = self.quantize(linear.weight, linear.formats.weights, order, factor)

    def prepare(self, hessian: Tensor, where: str) -> tuple[Tensor, Tensor]:
        """Column order [in] and the upper Cholesky factor U of the damped H^-1 [in, in], in that order, float64 inside.

        Raises NumericsError where H stays singular or not finite after damping.
        """
        h = hessian.double().clone()
        diagonal = h.diagonal()
        diagonal[diagonal == 0] = 1.0  # a channel that is never active: its weights are rounded alone
        order = (
            diagonal.argsort(descending=True, stable=True)
            if self.order == "activation"
            else torch.arange(h.shape[0], device=h.device)
        )
        h = h[order][:, order]
        h.diagonal().add_(self.damp * h.diagonal().mean())
        lower, failed = torch.linalg.cholesky_ex(h)
        if int(failed) or not bool(torch.isfinite(lower).all()):
            raise NumericsError(
                "the Hessian is singular or not finite after damping",
                where=where,
                hint=f"raise damp (it is {self.damp:g}) or calibrate on more samples",
            )
        return order, torch.linalg.cholesky(torch.cholesky_inverse(lower), upper=True).float()

    def quantize(self, weight: Tensor, fmt: TensorFormat, order: Tensor, factor: Tensor) -> numerics.Quantized:
        """Codes of W [out, in] for a format, with U [in, in] in column order `order`."""
        scale, zero = numerics.weight_scales(weight, fmt)
        groups = (order // fmt.group(weight.shape[1])).tolist()
        w = weight[:, order].clone()
        codes = torch.empty_like(w, dtype=torch.int8)
        for start in range(0, w.shape[1], self.block):
            end = min(start + self.block, w.shape[1])
            errors = torch.empty_like(w[:, start:end])
            for j in range(start, end):
                g = slice(groups[j], groups[j] + 1)
                s, z = scale[:, g], None if zero is None else zero[:, g]
                column = w[:, j : j + 1]
                q = numerics.encode(column, s, z, fmt.number)
                codes[:, j : j + 1] = q
                error = (column - numerics.dequantize(q, s, z)) / factor[j, j]
                w[:, j:end] -= error * factor[j, j:end]
                errors[:, j - start] = error[:, 0]
            w[:, end:] -= errors @ factor[start:end, end:]
        restored = torch.empty_like(codes)
        restored[:, order] = codes
        return numerics.Quantized(restored, scale, zero, fmt)
