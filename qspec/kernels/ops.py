"""The quantized product as a torch operator, so that torch.compile takes it as one node instead of tracing into it.

`qspec::multiply` computes what `launch.multiply` computes on CUDA and `reference.multiply` on a CPU. A kernel and its
folder travel as text: operators take tensors and plain values.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qspec.catalog import GemmKernel, LayerKernels
from qspec.kernels import launch, reference
from qspec.kernels.generate import library
from qspec.kernels.packing import PackedLinear
from qspec.kernels.reference import PreparedInput, ReferenceWeight


def text_of(kernel: GemmKernel) -> str:
    """A kernel as the operator takes it."""
    return json.dumps(asdict(kernel))


@lru_cache(maxsize=256)
def _kernels(text: str) -> LayerKernels:
    return LayerKernels(None, GemmKernel(**json.loads(text)))


@torch.library.custom_op("qspec::multiply", mutates_args=())
def multiply(
    values: Tensor,
    values_scale: Tensor | None,
    values_zero: Tensor | None,
    codes: Tensor,
    scale: Tensor,
    zero: Tensor | None,
    bias: Tensor | None,
    channels: int,
    dtype: torch.dtype,
    kernel: str,
    folder: str | None,
) -> Tensor:
    """Y [M, channels] in `dtype`, of prepared values [M, K] and a packed weight. kernel: of `text_of`."""
    packed = PackedLinear(_kernels(kernel), channels, values.shape[1], codes, scale, zero, bias, None)
    prepared = PreparedInput(values, values_scale, values_zero, values.shape, dtype)
    if values.device.type == "cpu":
        return reference.multiply(ReferenceWeight.of(packed), prepared)
    with torch.cuda.device(values.device):
        return launch.multiply(library(None if folder is None else Path(folder)), packed, prepared)


@multiply.register_fake
def _shape(values: Tensor, *others: Any) -> Tensor:
    channels, dtype = others[6:8]
    return values.new_empty(values.shape[0], channels, dtype=dtype)
