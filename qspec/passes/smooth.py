"""SmoothQuant (arXiv 2211.10438): outliers move from activations into weights, by a scale for each input channel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from annotated_types import Ge, Le

from qspec.language.spec import Fact, Pass
from qspec.lazy import LazyModule

if TYPE_CHECKING:
    import torch

    from qspec.passes.block import Block, Linear
else:
    torch = LazyModule("torch")

SMALLEST = 1e-5  # a channel that is never active keeps scale 1


@dataclass(frozen=True)
class Smooth(Pass):
    """x, W --> x / s, W s: s_j = max|X_j|^alpha / max|W_j|^(1 - alpha)  (arXiv 2211.10438, eq. 4).

    max|W_j| runs over all linears that read the input. 1 / s is folded into what produces the input (a norm's gain, the
    rows of v for o, the rows of up for down), so nothing is computed online. A linear that reads the same input
    without being selected absorbs s too: the function is preserved.

    Parameters: alpha, how much of the difficulty moves to the weights; 0.5 in the paper, 0.8-0.9 tuned on LLaMA.
    """

    alpha: Annotated[float, Ge(0), Le(1)] = 0.5

    requires: ClassVar[frozenset[Fact]] = frozenset({Fact.FLOAT_WEIGHTS, Fact.PLAIN_INPUT, Fact.OPEN_RANGE})

    def rewrite(self, block: Block, uses: tuple[Linear, ...]) -> None:
        """Smooths the inputs of the selected linears, in forward order."""
        for site in block.sites(uses):
            peak = block.statistics(site.name).peaks.clamp(min=SMALLEST)
            columns = torch.stack([linear.weight.abs().amax(0) for linear in site.linears]).amax(0)
            scale = peak.pow(self.alpha) / columns.clamp(min=SMALLEST).pow(1 - self.alpha)
            block.rescale_input(site.name, torch.where(peak > SMALLEST, scale, torch.ones_like(scale)))
