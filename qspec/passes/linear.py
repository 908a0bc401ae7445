"""One linear while it is compiled."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor, nn
from torch.nn import functional

from qspec import numerics
from qspec.errors import InputError
from qspec.formats import Scheme
from qspec.models.family import ModuleEntry
from qspec.models.inputs import LayerInput, plus, value_of
from qspec.transforms import InputTransform


class Input(NamedTuple):
    """What some linears read: a site's input, by its name without the block, at all tokens or those of one expert."""

    site: str
    expert: int | None = None


class Linear(nn.Module):
    """One linear while it is compiled: float32 weight [out, in] until `quantized` is set.

    `transform` is what its input goes through online; `weight` already holds the inverse. `clip`: ratio float32
    [out, groups] that a search found for the ranges of the weight's groups, in place of the scheme's.
    """

    def __init__(self, entry: ModuleEntry, scheme: Scheme | None, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.entry = entry
        self.scheme = scheme
        self.weight = weight.float()
        self.bias = None if bias is None else bias.float()
        self.transform: InputTransform | None = None
        self.clip: Tensor | None = None
        self.quantized: numerics.Quantized | None = None

    @property
    def input(self) -> Input:
        """What it reads."""
        return Input(self.entry.site.split(".", 1)[1], self.entry.role.expert)

    @property
    def formats(self) -> Scheme:
        """The scheme of a linear that has one; passes are only called with those."""
        assert self.scheme is not None
        return self.scheme

    def absorb(self, transform: InputTransform) -> None:
        """x W^T --> T(x) (W T^-1)^T."""
        self.weight = transform.absorb(self.weight)
        self.transform = transform

    @property
    def input_key(self) -> tuple[object, ...]:
        """Linears of one site with equal keys share `prepare`."""
        return (id(self.transform), self.formats.activations if self.quantized is not None else None)

    def prepare(self, given: LayerInput, *, rounding: bool = True) -> TransformedInput:
        """x [..., in] as it comes, and T(x), rounded to the scheme's activations once the weights are codes.

        rounding: False leaves everything in floats.
        """
        x = value_of(given)
        rounds = rounding and self.quantized is not None
        return TransformedInput(x, self.rounded_input(x) if rounds else self.transformed(x))

    def transformed(self, x: Tensor) -> Tensor:
        """T(x) [..., in], float32."""
        return x.float() if self.transform is None else self.transform.apply(x)

    def rounded_input(self, x: Tensor) -> Tensor:
        """T(x) [..., in], rounded to the scheme's activations, float32."""
        ready = self.transformed(x)
        if self.formats.activations is None:
            return ready
        rows = ready.reshape(-1, x.shape[-1])
        return (
            numerics.quantize_activations(rows, self.formats.activations, str(self.entry.role))
            .dequantize()
            .reshape(x.shape)
        )

    def multiply(self, prepared: TransformedInput, residual: Tensor | None = None, *, rounding: bool = True) -> Tensor:
        """[..., out], with the rounding that has been decided so far, added to the residual if there is one."""
        weight = self.rounded_weight() if rounding else self.weight
        return plus(residual, functional.linear(prepared.ready, weight, self.bias).to(prepared.raw.dtype))

    def forward(self, given: LayerInput) -> Tensor:
        return self.multiply(self.prepare(given))

    def rounded_weight(self) -> Tensor:
        """float32 [out, in]."""
        return self.weight if self.quantized is None else self.quantized.dequantize()

    def require_float(self, who: str) -> None:
        """Raises InputError where the weight is codes already."""
        if self.quantized is not None:
            raise InputError(
                f"{who} rewrites {self.entry.role}, which is quantized already",
                where=str(self.entry.role),
                hint="put this pass before every quantizing pass",
            )

    def require_open(self, who: str) -> None:
        """Raises InputError where a clip was searched for the weight as it is."""
        if self.clip is not None:
            raise InputError(
                f"{who} rewrites {self.entry.role}, whose clip was searched already",
                where=str(self.entry.role),
                hint="put this pass before every clip search",
            )


@dataclass(frozen=True)
class TransformedInput:
    """A linear's input before and after its online transform and rounding."""

    raw: Tensor
    ready: Tensor


class LinearView(nn.Module):
    """A linear as one forward pass runs it. rounding: False leaves it in floats, input and weight. watcher: told what
    it reads, [tokens, in]."""

    def __init__(
        self, linear: Linear, *, rounding: bool = True, watcher: Callable[[Tensor], None] | None = None
    ) -> None:
        super().__init__()
        self.linear = linear
        self.rounding = rounding
        self.watcher = watcher

    @property
    def input_key(self) -> tuple[object, ...]:
        return self.linear.input_key if self.rounding else (id(self.linear.transform), None)

    def prepare(self, given: LayerInput) -> TransformedInput:
        return self.linear.prepare(given, rounding=self.rounding)

    def multiply(self, prepared: TransformedInput, residual: Tensor | None = None) -> Tensor:
        if self.watcher is not None:
            self.watcher(prepared.raw.reshape(-1, prepared.raw.shape[-1]))
        return self.linear.multiply(prepared, residual, rounding=self.rounding)

    def forward(self, given: LayerInput) -> Tensor:
        return self.multiply(self.prepare(given))
