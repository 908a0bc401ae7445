"""Round to nearest: each weight goes to the closest code of its group's scale."""

from __future__ import annotations

from qspec import numerics
from qspec.passes.block import Block
from qspec.passes.linear import Linear
from qspec.passes.parameters import Rtn


def rewrite(params: Rtn, block: Block, uses: tuple[Linear, ...]) -> None:
    """W --> codes(W): round to nearest, with the clip of the scheme (ratio, or searched by MSE).

    Needs no calibration data. The floor that every other quantizer is measured against.

    Quantizes each linear by itself; the block's inputs are not looked at.
    """
    for linear in uses:
        where = str(linear.entry.role)
        linear.quantized = numerics.quantize_weight(linear.weight, linear.formats.weights, linear.clip, where)
