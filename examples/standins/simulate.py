"""Rounding simulated in floating point: what a checkpoint keeps of its accuracy, before any compiler touches it.

Weights are rounded to nearest, per output channel; activations per token. Methods are bare versions of those that
qspec compiles: smoothing (arXiv 2211.10438), and random Hadamard rotations of blocks of 128 channels, dealt over the
blocks and rotated again. No second-order correction of weights (GPTQ) is made, so real recipes do better.
"""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from outliers import inputs, sites
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional

from qspec.formats import NUMBER_FORMATS, Clip, Granularity, TensorFormat
from qspec.models.decoder import Decoder
from qspec.models.operations import weight_and_bias
from qspec.numerics import quantize_activations, quantize_weight
from qspec.transforms import InputTransform

ROTATION_BLOCK = 128
WINDOW, WINDOWS = 128, 64


@dataclass(frozen=True)
class Rounding:
    """bits of weights and activations (16 = not rounded). smooth: its strength, 0 for none. rotate: or not."""

    label: str
    weight_bits: int
    activation_bits: int
    smooth: float = 0.0
    rotate: bool = False


ROUNDINGS = (
    Rounding("W8A8", 8, 8),
    Rounding("W8A8 smoothed", 8, 8, smooth=0.5),
    Rounding("W4A4", 4, 4),
    Rounding("W4A4 smoothed", 4, 4, smooth=0.5),
    Rounding("W4A4 rotated", 4, 4, rotate=True),
    Rounding("W4A4 smoothed and rotated", 4, 4, smooth=0.6, rotate=True),
)


class Rounded(nn.Module):
    """y = round(T(x / s)) round((W s) T^-1)^T + b, dequantized."""

    def __init__(
        self,
        w: Tensor,
        bias: Tensor | None,
        rounding: Rounding,
        smooth: Tensor,
        transform: InputTransform | None,
    ) -> None:
        super().__init__()
        self.bias = bias
        weights = _format(rounding.weight_bits, "channel", Clip("mse"))
        self.smooth, self.transform = smooth, transform
        self.w = quantize_weight(
            w * smooth if transform is None else transform.absorb(w * smooth), weights
        ).dequantize()
        self.activations = _format(rounding.activation_bits, "token", Clip("ratio", 0.9))

    def forward(self, x: Tensor) -> Tensor:
        flat = x.float().reshape(-1, x.shape[-1]) / self.smooth
        if self.transform is not None:
            flat = self.transform.apply(flat)
        flat = quantize_activations(flat, self.activations).dequantize()
        return functional.linear(flat, self.w, self.bias).reshape(*x.shape[:-1], -1).to(x.dtype)


def rounded(model: Decoder, rounding: Rounding, ids: Tensor) -> Decoder:
    """A copy of a float32 model with every block linear rounded. ids [windows, tokens]: calibrates the smoothing."""
    seen = inputs(model, ids)
    model = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(0)
    for block, own in zip(model.blocks, seen, strict=True):
        for site in sites(block):
            x = own[site[0]]
            linears = {part: weight_and_bias(block.part(part)) for part in site}
            weights = {part: weight for part, (weight, _) in linears.items()}
            smooth = _smoothing(x, weights, rounding.smooth)
            transform = _rotation(x.shape[-1], generator).to(x.device) if rounding.rotate else None
            for part, (w, bias) in linears.items():
                block.replace(part, Rounded(w, bias, rounding, smooth, transform))
    return model


def calibration(folder: Path, tokenizer: Tokenizer, mask: int) -> Tensor:
    """Windows of a stand-in's calibration text [windows, tokens], each masked at a share of its own."""
    rows = (folder / "data/calibration.jsonl").read_text(encoding="utf-8").splitlines()
    stream = torch.tensor([i for row in rows for i in tokenizer.encode(json.loads(row)["text"]).ids])
    ids = stream[: len(stream) // WINDOW * WINDOW].view(-1, WINDOW)[:WINDOWS]
    generator = torch.Generator().manual_seed(0)
    share = torch.rand(len(ids), 1, generator=generator)
    return ids.masked_fill(torch.rand(ids.shape, generator=generator) < share, mask)


def _smoothing(x: Tensor, weights: dict[str, Tensor], strength: float) -> Tensor:
    """s_j = max|X_j|^p / max|W_j|^(1 - p), ones for p = 0."""
    if not strength:
        return torch.ones_like(x[0])
    columns = torch.stack([w.abs().amax(0) for w in weights.values()]).amax(0).clamp(min=1e-5)
    return x.abs().amax(0).clamp(min=1e-5) ** strength / columns ** (1 - strength)


def _rotation(width: int, generator: torch.Generator) -> InputTransform:
    """Blocks rotated, channels dealt over the blocks, rotated again."""
    deal = torch.arange(width).view(-1, ROTATION_BLOCK).T.reshape(-1).to(torch.int32)
    return InputTransform((_hadamard(generator), _hadamard(generator)), deal)


def _hadamard(generator: torch.Generator) -> Tensor:
    """float16 [128, 128], orthonormal, with random signs."""
    h = torch.ones(1, 1)
    while h.shape[0] < ROTATION_BLOCK:
        h = torch.cat((torch.cat((h, h), 1), torch.cat((h, -h), 1)))
    signs = torch.randint(2, (ROTATION_BLOCK, 1), generator=generator) * 2 - 1
    return (signs * h / ROTATION_BLOCK**0.5).half()


def _format(bits: int, granularity: str, clip: Clip) -> TensorFormat:
    """Symmetric; 8 bits need no clip."""
    return TensorFormat(NUMBER_FORMATS[f"int{bits}"], Granularity(granularity), clip=clip if bits < 8 else Clip())
