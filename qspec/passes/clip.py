"""Weight clip search, AWQ's second half (arXiv 2306.00978): ranges are cut where the output error is least."""

from __future__ import annotations

import torch
from torch import Tensor

from qspec import numerics
from qspec.errors import NumericsError
from qspec.formats import TensorFormat
from qspec.passes.block import Block
from qspec.passes.linear import Linear
from qspec.passes.parameters import ClipSearch


def rewrite(params: ClipSearch, block: Block, uses: tuple[Linear, ...]) -> None:
    """Chooses the clip ratio of every group of W for the quantizer that comes; W itself stays  (arXiv 2306.00978).

    With d = w - w^ the rounding error of one group g of a row, and X_g the calibration inputs of its columns, tokens in
    rows with weights c, the ratio in {1, 1 - 1/grid, .. 1 - shrink} with the least sum_t c_t (X_g d)_t^2 is taken; the
    largest of equals. That is d^T H_g d / 2 * sum(c), with H_g the block of GPTQ's H = 2 X^T diag(c) X / sum(c) on the
    group's columns: every token counts, none has to be kept.

    The ratio cuts both ends of a group's range, as the scheme's own clip does, and replaces that one. Where we differ
    from the paper's code: it cuts |w| at a ratio of max|w|, which moves the shorter end of an asymmetric range only
    once it is reached, and looks at 512 tokens. It leaves q and k alone, which a softmax of products consumes: here
    the selector says what is clipped.

    Sets `clip` of each selected linear, on its input after online transforms.
    """
    for group, hessian in block.observed.hessians(uses):
        for linear in group:
            linear.clip = best_ratios(
                linear.weight, linear.formats.weights, hessian, params.grid, params.shrink, str(linear.entry.role)
            )


def best_ratios(
    weight: Tensor, fmt: TensorFormat, hessian: Tensor, grid: int, shrink: float, where: str | None = None
) -> Tensor:
    """Clip ratio float32 [out, groups] of W [out, in], for H [in, in] of its inputs.

    where: the layer's role, for errors. Raises NumericsError where H holds NaN or Inf.
    """
    columns = weight.shape[1]
    size = fmt.group(columns)
    own = torch.stack([hessian[i : i + size, i : i + size] for i in range(0, columns, size)])  # [groups, size, size]
    best = torch.ones(weight.shape[0], columns // size, device=weight.device)
    least = torch.full_like(best, float("inf"))
    for step in range(int(grid * shrink + 1e-9) + 1):
        ratio = torch.full_like(best, 1 - step / grid)
        error = weight - numerics.quantize_weight(weight, fmt, ratio, where).dequantize()
        error = error.reshape(*best.shape, size).transpose(0, 1)  # [groups, out, size]
        loss = ((error @ own) * error).sum(-1).T
        better = loss < least
        least = torch.where(better, loss, least)
        best = torch.where(better, ratio, best)
    if not bool(torch.isfinite(least).all()):
        raise NumericsError(
            "the output error of every clip is NaN or Inf",
            where=where,
            hint="the calibration inputs overflow here: leave this layer out of the clip search",
        )
    return best
