"""A block, its rounding and its rotary positions once more, in float64 and written apart from qspec: what tests compare
with. Nothing here calls qspec's numerics, decoder or passes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from qspec.formats import TensorFormat
from qspec.passes.block import Block
from tests.passes.conftest import SHAPE

HEADS, KV_HEADS, WIDTH = SHAPE.heads, SHAPE.kv_heads, SHAPE.head_width


def rounded(w: Tensor, fmt: TensorFormat, clip: Tensor | float = 1.0) -> Tensor:
    """W [out, in] rounded to nearest in groups of its columns, whose ranges are cut by `clip` [out, groups].

    Symmetric ranges of up to 5 bits end a thousandth before half a step beyond the highest code.
    """
    bits = fmt.number.bits
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    groups = w.double().reshape(w.shape[0], -1, fmt.group(w.shape[1]))
    clip = torch.as_tensor(clip, dtype=torch.float64)[..., None]
    if fmt.symmetric:
        scale, zero = stored(groups.abs().amax(-1, keepdim=True) * clip / reach(bits), fmt), 0.0
    else:
        least = groups.amin(-1, keepdim=True).clamp(max=0) * clip
        most = groups.amax(-1, keepdim=True).clamp(min=0) * clip
        scale = stored((most - least) / (high - low), fmt)
        zero = (low - least / scale).round().clamp(low, high)
    quotient = (groups.float() / scale.float()).double()
    return (((quotient.round() + zero).clamp(low, high) - zero) * scale).reshape(w.shape)


def reach(bits: int) -> float:
    return (2 ** (bits - 1) - 0.5) * 1023 / 1024 if bits <= 5 else 2 ** (bits - 1) - 1


def stored(scale: Tensor, fmt: TensorFormat) -> Tensor:
    kept = scale.half() if fmt.granularity.kind == "group" else scale.float()
    return torch.where(kept > 0, kept, 1).double()


def rounded_tokens(x: Tensor, fmt: TensorFormat | None) -> Tensor:
    """X [tokens, in], each token rounded symmetrically to its own largest magnitude."""
    if fmt is None:
        return x
    high = 2 ** (fmt.number.bits - 1) - 1
    x = x.float()
    scale = x.abs().amax(1, keepdim=True) / reach(fmt.number.bits)
    return ((x / scale).round().clamp(-high - 1, high) * scale).double()


@dataclass
class Copy:
    """Weights, biases and gains of a block in float64, by part."""

    weight: dict[str, Tensor]
    bias: dict[str, Tensor | None]
    gain: dict[str, Tensor]

    @classmethod
    def of(cls, block: Block) -> Copy:
        linears = block.linears.items()
        return cls(
            {part: linear.weight.double().clone() for part, linear in linears},
            {part: None if linear.bias is None else linear.bias.double().clone() for part, linear in linears},
            {part: block.module.part(part).weight.double().clone() for part in ("attention.norm", "mlp.norm")},
        )

    def linear(self, part: str, x: Tensor) -> Tensor:
        bias = self.bias[part]
        return x @ self.weight[part].T + (0 if bias is None else bias)

    def norm(self, part: str, x: Tensor) -> Tensor:
        return x / (x.square().mean(-1, keepdim=True) + SHAPE.norm_eps).sqrt() * self.gain[part]

    def inputs(self, x: Tensor) -> dict[str, Tensor]:
        """What every site sees of hidden states x [b, t, d]."""
        normed = self.norm("attention.norm", x)
        mixed = self.mixed(normed)
        h = self.norm("mlp.norm", x + self.linear("attention.o", mixed))
        return {"attention.input": normed, "attention.mixed": mixed, "mlp.input": h, "mlp.gated": self.gated(h)}

    def mixed(self, h: Tensor) -> Tensor:
        """Heads of attention before o, one query head and one row at a time."""
        q, k, v = (self.linear(f"attention.{name}", h) for name in "qkv")
        out = torch.empty_like(q)
        for row in range(h.shape[0]):
            for head in range(HEADS):
                own, other = _head(head), _head(head // (HEADS // KV_HEADS))
                scores = turned(q[row, :, own]) @ turned(k[row, :, other]).T / WIDTH**0.5
                out[row, :, own] = scores.softmax(-1) @ v[row, :, other]
        return out

    def gated(self, h: Tensor) -> Tensor:
        gate = self.linear("mlp.gate", h)
        return gate / (1 + (-gate).exp()) * self.linear("mlp.up", h)

    def consumer(self, site: str, x: Tensor) -> Tensor:
        """The module that reads the site: attention, MLP, or the one linear."""
        match site:
            case "attention.input":
                return self.linear("attention.o", self.mixed(x))
            case "mlp.input":
                return self.linear("mlp.down", self.gated(x))
        return self.linear("attention.o" if site == "attention.mixed" else "mlp.down", x)


def turned(x: Tensor) -> Tensor:
    """Rotary positions of [t, head width], as complex numbers: channel i with channel i + half."""
    half = x.shape[1] // 2
    angle = torch.arange(len(x)).double()[:, None] * SHAPE.rope_theta ** (-torch.arange(half).double() / half)
    z = torch.complex(x[:, :half], x[:, half:]) * torch.polar(torch.ones_like(angle), angle)
    return torch.cat([z.real, z.imag], dim=1)


def _head(index: int) -> slice:
    return slice(index * WIDTH, (index + 1) * WIDTH)
