"""Round to nearest: each weight goes to the closest code of its group's scale."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from qspec.language.spec import Fact, Pass
from qspec.lazy import LazyModule

if TYPE_CHECKING:
    from qspec import numerics
    from qspec.passes.block import Block
    from qspec.passes.linear import Linear
else:
    numerics = LazyModule("qspec.numerics")


@dataclass(frozen=True)
class Rtn(Pass):
    """W --> codes(W): round to nearest, with the clip of the scheme (ratio, or searched by MSE).

    Needs no calibration data. The floor that every other quantizer is measured against.
    """

    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.FLOAT_WEIGHTS})
    establishes: ClassVar[frozenset[Fact]] = frozenset({Fact.CODES})
    clears: ClassVar[frozenset[Fact]] = frozenset({Fact.FLOAT_WEIGHTS})
    quantizes: ClassVar[bool] = True

    def rewrite(self, block: Block, uses: tuple[Linear, ...]) -> None:
        """Quantizes each linear by itself; the block's inputs are not looked at."""
        for linear in uses:
            where = str(linear.entry.role)
            linear.quantized = numerics.quantize_weight(linear.weight, linear.formats.weights, linear.clip, where)
