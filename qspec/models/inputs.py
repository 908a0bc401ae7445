"""What a linear reads: a tensor, or the tensors of which its input is computed first; and what it adds to.

A block hands its linears these instead of the computed input, so that the kernel that quantizes it can compute it in
the same pass over memory; what it is, is defined here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from qspec.catalog import Activation


@dataclass(frozen=True)
class Normed:
    """RMSNorm(x) of x [..., K] (arXiv 1910.07467): gain x / sqrt(mean(x^2) + eps) over the last axis.

    The quotient is computed wide and rounded to x's dtype before the gain [K] multiplies it, as LLaDA has it.
    """

    x: Tensor
    gain: Tensor
    eps: float
    source: ClassVar[str] = "rmsnorm"

    def value(self) -> Tensor:
        """[..., K] in x's dtype: a float32 gain does not widen a bf16 model."""
        x = wide(self.x)
        scaled = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps)
        return (self.gain * scaled.to(self.x.dtype)).to(self.x.dtype)


@dataclass(frozen=True)
class Gated:
    """f(gate) up of two tensors [..., K], each rounded to their dtype: f is silu, or gelu in its form with tanh
    (arXiv 1606.08415)."""

    x: Tensor
    up: Tensor
    activation: Activation = "silu"

    @property
    def source(self) -> str:
        return f"{self.activation}_mul"

    def value(self) -> Tensor:
        """[..., K] in their dtype."""
        gate = functional.silu(self.x) if self.activation == "silu" else functional.gelu(self.x, approximate="tanh")
        return gate * self.up


LayerInput = Tensor | Normed | Gated


def value_of(given: LayerInput) -> Tensor:
    """The linear's input itself."""
    return given if isinstance(given, Tensor) else given.value()


def source_of(given: LayerInput) -> str:
    """What an activation quantization kernel calls it (`qspec.catalog.SOURCES`)."""
    return "plain" if isinstance(given, Tensor) else given.source


def width_of(given: LayerInput) -> int:
    """K."""
    return (given if isinstance(given, Tensor) else given.x).shape[-1]


def plus(residual: Tensor | None, y: Tensor) -> Tensor:
    """residual + y, of one shape and dtype; y where there is no residual."""
    return y if residual is None else residual + y


def wide(x: Tensor) -> Tensor:
    """float32, or float64 where x is."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
