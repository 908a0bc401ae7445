"""Linears of one input as one GEMM: q, k and v, or gate and up, where the recipe gives them one scheme."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise

from torch import Tensor, nn

from qspec.kernels.linear import QuantLinear
from qspec.models.inputs import LayerInput
from qspec.transforms import InputTransform


class MergedPart(nn.Module):
    """One of several linears that are computed as one: the channels first .. last - 1 of `whole`.

    To whoever shares a prepared input (`qspec.models.operations.project`), the whole GEMM is what is prepared once,
    and a part is cut out of it.
    """

    def __init__(self, whole: QuantLinear, first: int, last: int) -> None:
        super().__init__()
        self.whole = whole
        self.first, self.last = first, last

    @property
    def in_features(self) -> int:
        return self.whole.in_features

    @property
    def out_features(self) -> int:
        return self.last - self.first

    @property
    def transform(self) -> InputTransform | None:
        """Of the input that all parts read."""
        return self.whole.transform

    @property
    def input_key(self) -> tuple[object, ...]:
        """Equal for the parts of one GEMM."""
        return ("merged", self.whole)

    def prepare(self, given: LayerInput) -> Tensor:
        """Y [..., out] of all parts."""
        y: Tensor = self.whole(given)
        return y

    def multiply(self, prepared: Tensor) -> Tensor:
        """This part of Y [..., out]: a view."""
        return prepared[..., self.first : self.last]

    def forward(self, given: LayerInput) -> Tensor:
        return self.multiply(self.prepare(given))

    def extra_repr(self) -> str:
        return f"channels {self.first} to {self.last - 1}"


class GatedPart(nn.Module):
    """Gate or up where one GEMM, `whole`, gives f(gate) up: neither has an output of its own."""

    def __init__(self, whole: QuantLinear) -> None:
        super().__init__()
        self.whole = whole

    @property
    def transform(self) -> InputTransform | None:
        """Of the input that both read."""
        return self.whole.transform

    def prepare(self, given: LayerInput) -> Tensor:
        """f(gate) up [..., channels of gate], in the dtype of the input."""
        y: Tensor = self.whole(given)
        return y

    def gated(self, given: LayerInput) -> Tensor:
        """The same, seen by whoever watches what is prepared (`qspec.calibrate.outliers`)."""
        return self.prepare(given)


def parts_of(whole: QuantLinear, sizes: Sequence[int]) -> list[MergedPart] | list[GatedPart]:
    """One part for each number of output channels, in order."""
    if whole.kernels.gemm.gated:
        return [GatedPart(whole) for _ in sizes]
    return [MergedPart(whole, first, last) for first, last in pairwise(accumulate(sizes, initial=0))]
