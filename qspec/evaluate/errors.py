"""How far a quantized layer is from the original, and the table of layers that the report shows."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class LayerRow:
    """One module as it was compiled.

    scheme: the recipe's name for it, None where it is kept; label: W4A4 and the like. bits: stored bits a
    weight, scales counted. sqnr_db: of the layer's output on calibration inputs; weight_sqnr_db: of its
    weight, after transforms; both None where nothing was rounded. kernel: the kernels that run it. passes:
    the statements that touched it, in order.
    """

    role: str
    module: str
    scheme: str | None
    label: str
    bits: float
    sqnr_db: float | None
    weight_sqnr_db: float | None
    kernel: str
    passes: tuple[str, ...]
    in_features: int = 0
    out_features: int = 0


def sqnr_db(exact: Tensor, approximate: Tensor) -> float:
    """Signal to quantization noise, 10 log10(sum exact^2 / sum (exact - approximate)^2), in float64 decibels.

    Infinite where both are equal, minus infinite where only the exact tensor is zero.
    """
    signal = exact.double().square().sum()
    noise = (exact.double() - approximate.double()).square().sum()
    if noise == 0:
        return float("inf")
    return float(10 * torch.log10(signal / noise))
