"""What blocks compute besides their linears, and how they call these: attention, rotary positions, one input for
several linears. Whoever runs a model may have faster `Operations` than those of torch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from qspec.catalog import Activation
from qspec.models.commit import Sure, commit
from qspec.models.inputs import Gated, LayerInput, plus, value_of, wide
from qspec.models.likeliest import Measure, likeliest
from qspec.models.routing import Pools


class KeyValues(NamedTuple):
    """What one block keeps of a canvas: rotated keys and values, [b, kv heads, t, head width] each."""

    keys: Tensor
    values: Tensor


@dataclass(frozen=True)
class AttentionContext:
    """What the blocks of one forward pass are told.

    cos, sin: float32 [1 or b, 1, n, channels of a head that are rotated], of the n tokens that the pass computes. mask:
    bool [1 or b, 1, g, t], True where each of g equal runs of queries sees a key; None when each sees all. tokens:
    which of the t these n are, a slice or int64 [n]. kept: what this block keeps of all t; None where the pass computes
    all and keeps nothing. others: the same for blocks that attend in the second of `DecoderShape.kinds`, the third, ...
    pools: of the n tokens of each row, one row after the other, where routers have a capacity.
    """

    cos: Tensor
    sin: Tensor
    mask: Tensor | None
    tokens: slice | Tensor
    kept: KeyValues | None = None
    others: tuple[AttentionContext, ...] = ()
    pools: Pools | None = None

    def of(self, kind: int) -> AttentionContext:
        """For a block of this kind."""
        return self if kind == 0 else replace(self.others[kind - 1], kept=self.kept)

    def attended(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of all t tokens, from those of the n that are computed, which are kept."""
        if self.kept is None:
            return k, v
        self.kept.keys[:, :, self.tokens] = k
        self.kept.values[:, :, self.tokens] = v
        return self.kept


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float | None = None) -> Tensor:
    """softmax(scale q k^T) v, [b, heads, n, width], for q alike and k, v [b, kv heads, t, width].

    mask: bool [b, 1, g, t], True where each of g equal runs of queries sees a key; None, each sees all. scale: None,
    1 / sqrt(width).
    """
    if mask is not None and mask.shape[2] not in (1, q.shape[2]):
        mask = mask.repeat_interleave(q.shape[2] // mask.shape[2], dim=2)
    return functional.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, scale=scale, enable_gqa=q.shape[1] != k.shape[1]
    )


def rotate(x: Tensor, context: AttentionContext) -> Tensor:
    """Rotary positions of x [b, heads, t, head width]: x cos + (-x2, x1) sin with x = (x1, x2), or with the first
    channels of a head for x, where these alone are rotated."""
    width = context.cos.shape[-1]
    part, rest = x[..., :width], x[..., width:]
    whole = wide(part)
    first, second = whole.chunk(2, dim=-1)
    turned = (whole * context.cos + torch.cat((-second, first), dim=-1) * context.sin).to(x.dtype)
    return turned if width == x.shape[-1] else torch.cat((turned, rest), dim=-1)


def rotate_and_keep(q: Tensor, k: Tensor, v: Tensor, context: AttentionContext) -> tuple[Tensor, Tensor, Tensor]:
    """What attention reads of the n tokens that are computed, [b, heads, n, width]: their queries and keys in rotary
    positions; of keys and values those of all t tokens."""
    return rotate(q, context), *context.attended(rotate(k, context), v)


ValueOf = Callable[[LayerInput], Tensor]


def passed(call: Callable[[], Tensor]) -> Tensor:
    """A pass through all blocks, made by the call."""
    return call()


class Operations(NamedTuple):
    """What a model computes besides its linears, as functions that compute what those of `TORCH` do.

    passed: makes a pass through all blocks, with a call that may be made twice.
    """

    attention: Callable[[Tensor, Tensor, Tensor, Tensor | None, float | None], Tensor]
    rotate_and_keep: Callable[[Tensor, Tensor, Tensor, AttentionContext], tuple[Tensor, Tensor, Tensor]]
    value_of: ValueOf
    passed: Callable[[Callable[[], Tensor]], Tensor]
    likeliest: Callable[[Tensor, Tensor | None, Tensor, Measure], tuple[Tensor, Tensor]]
    commit: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, int, Sure], tuple[Tensor, Tensor]]


TORCH = Operations(attention, rotate_and_keep, value_of, passed, likeliest, commit)


class QuantizedLinear(Protocol):
    """A linear that transforms and quantizes its input (`prepare`) before it multiplies."""

    @property
    def input_key(self) -> object:
        """Equal for linears that prepare an input identically: one activation quantization kernel, one transform."""
        ...

    def prepare(self, given: LayerInput) -> object: ...

    def multiply(self, prepared: object, residual: Tensor | None = None) -> Tensor: ...


def project(linears: Sequence[nn.Module], given: LayerInput, value_of: ValueOf = value_of) -> list[Tensor]:
    """Each linear's output for one shared input; quantized linears that prepare it alike prepare it once.

    value_of: computes what plain linears read.
    """
    outputs: list[Tensor] = []
    prepared: list[tuple[QuantizedLinear, object]] = []
    value: Tensor | None = None
    for linear in linears:
        if not hasattr(linear, "prepare"):
            value = value_of(given) if value is None else value
            outputs.append(linear(value))
            continue
        quantized = cast(QuantizedLinear, linear)
        ready = next((value for other, value in prepared if other.input_key == quantized.input_key), None)
        if ready is None:
            ready = quantized.prepare(given)
            prepared.append((quantized, ready))
        outputs.append(quantized.multiply(ready))
    return outputs


class GatedGemm(Protocol):
    """Gate or up of a block, which one GEMM computes together."""

    def gated(self, given: LayerInput) -> Tensor:
        """f(gate) up."""
        ...


def gated(
    gate: nn.Module,
    up: nn.Module,
    given: LayerInput,
    value_of: ValueOf = value_of,
    activation: Activation = "silu",
) -> LayerInput:
    """f(gate) up for one shared input: where one GEMM gives it that, else for the reader to compute."""
    if hasattr(gate, "gated"):
        return cast(GatedGemm, gate).gated(given)
    x, beside = project([gate, up], given, value_of)
    return Gated(x, beside, activation)


def project_onto(residual: Tensor | None, linear: nn.Module, given: LayerInput, value_of: ValueOf = value_of) -> Tensor:
    """residual + the linear's output, or that alone; a quantized linear adds where it multiplies."""
    if not hasattr(linear, "prepare"):
        return plus(residual, linear(value_of(given)))
    quantized = cast(QuantizedLinear, linear)
    return quantized.multiply(quantized.prepare(given), residual)


def weight_and_bias(module: nn.Module) -> tuple[Tensor, Tensor | None]:
    """Of a norm or linear, detached; bias None where it has none."""
    weight, bias = cast(Tensor, module.weight), cast("Tensor | None", getattr(module, "bias", None))
    return weight.detach(), None if bias is None else bias.detach()
