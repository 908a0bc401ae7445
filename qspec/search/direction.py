"""A linear between what it is and what it becomes when it is rounded: what probes without a whole forward pass need."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from qspec.models.inputs import plus
from qspec.passes.linear import Linear, TransformedInput


class Both(NamedTuple):
    """An input prepared for the linear as it is, and as it is rounded."""

    exact: TransformedInput
    rounded: TransformedInput


class Directed(nn.Module):
    """y + step (y^ - y), with y^ what the rounded linear computes from the same input, and step [rows] per row.

    At step 0 the function is unchanged, and its derivative by the step is that of rounding. noise, signal: sums of
    ||y^ - y||^2 and ||y||^2 over what went through.
    """

    def __init__(self, linear: Linear, step: Tensor) -> None:
        super().__init__()
        self.linear = linear
        self.step = step
        self.noise = self.signal = 0.0

    @property
    def input_key(self) -> object:
        """Every input is prepared for this linear alone."""
        return id(self)

    def prepare(self, x: Tensor) -> Both:
        """Without and with rounding."""
        return Both(self.linear.prepare(x, rounding=False), self.linear.prepare(x))

    def multiply(self, prepared: Both, residual: Tensor | None = None) -> Tensor:
        """[b, t, out], added to the residual if there is one."""
        exact = self.linear.multiply(prepared.exact, rounding=False)
        with torch.no_grad():
            change = self.linear.multiply(prepared.rounded).float() - exact.float()
            self.noise += float(change.double().square().sum())
            self.signal += float(exact.double().square().sum())
        return plus(residual, exact + (self.step[:, None, None] * change).to(exact.dtype))

    def forward(self, x: Tensor) -> Tensor:
        return self.multiply(self.prepare(x))
