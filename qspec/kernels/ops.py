"""A quantized linear as torch operators, so that torch.compile takes them as nodes instead of tracing into them.

`qspec::prepare` and `qspec::multiply` compute what `launch` has under these names on CUDA, and `reference` on a CPU.
Kernels and their folder travel as text: operators take tensors and plain values.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qspec.catalog import ActivationKernel, GemmKernel, LayerKernels
from qspec.kernels import launch, reference
from qspec.kernels.generate import library
from qspec.kernels.packing import PackedLinear
from qspec.kernels.reference import PreparedInput, ReferenceWeight
from qspec.models.inputs import Gated, LayerInput, Normed
from qspec.transforms import InputTransform


@lru_cache(maxsize=256)
def text_of(kernel: GemmKernel | ActivationKernel) -> str:
    """A kernel as the operator takes it."""
    return json.dumps(asdict(kernel))


@lru_cache(maxsize=256)
def _kernels(text: str) -> LayerKernels:
    return LayerKernels(None, GemmKernel(**json.loads(text)))


@lru_cache(maxsize=256)
def _row(text: str) -> ActivationKernel:
    fields = json.loads(text)
    return ActivationKernel(**fields | {"rotations": tuple(fields["rotations"])})


@torch.library.custom_op("qspec::prepare", mutates_args=())
def prepare(
    x: Tensor,
    up: Tensor | None,
    gain: Tensor | None,
    eps: float,
    transform: list[Tensor],
    kernel: str,
    folder: str | None,
) -> list[Tensor]:
    """Codes, scales and zero points, or transformed floats, of what x is with `up` or `gain` (`models.inputs`).

    transform: its rotations, and behind two of them the permutation, as `launch.PlacedTransform` has them on CUDA, as
    `InputTransform` on a CPU. kernel: of `text_of`. Results that a symmetric kernel or one without codes does not have
    are not in the list.
    """
    row = _row(kernel)
    given: LayerInput = x if up is None else Gated(x, up, row.activation or "silu")
    if gain is not None:
        given = Normed(x, gain, eps)
    rotations, permutation = tuple(transform[:2]), transform[2] if len(transform) > 2 else None
    if x.device.type == "cpu":
        prepared = reference.prepare(row, InputTransform(rotations, permutation) if rotations else None, given)
    else:
        placed = launch.PlacedTransform(rotations, permutation) if rotations else None
        with torch.cuda.device(x.device):
            prepared = launch.prepare(library(None if folder is None else Path(folder)), row, placed, given)
    parts = (prepared.values, prepared.scale, prepared.zero, prepared.unit)
    return [part for part in parts if part is not None]


@prepare.register_fake
def _prepared_shapes(x: Tensor, *others: Any) -> list[Tensor]:
    return list(launch.outputs(_row(others[4]), x.reshape(-1, x.shape[-1])).values())


@torch.library.custom_op("qspec::multiply", mutates_args=())
def multiply(
    x: list[Tensor | None],
    weight: list[Tensor | None],
    residual: Tensor | None,
    shape: list[int],
    dtype: torch.dtype,
    kernel: str,
    folder: str | None,
) -> Tensor:
    """Y [M, N] in `dtype`, of a prepared input and a packed weight, added to a residual if there is one.

    x: values [M, K], scale, zero and unit. weight: codes, scale, zero, bias and unit. shape: of the weight, N, of a
    gated kernel twice that, and K. kernel: of `text_of`.
    """
    values, values_scale, values_zero, values_unit = x
    codes, scale, zero, bias, unit = weight
    assert values is not None
    assert codes is not None
    assert scale is not None
    rows, columns = shape
    packed = PackedLinear(_kernels(kernel), rows, columns, codes, scale, zero, bias, None, unit)
    size = torch.Size((values.shape[0], columns))
    prepared = PreparedInput(values, values_scale, values_zero, size, dtype, values_unit)
    if values.device.type == "cpu":
        return reference.multiply(ReferenceWeight.of(packed), prepared, residual)
    with torch.cuda.device(values.device):
        rendered = library(None if folder is None else Path(folder))
        return launch.multiply(rendered, packed, prepared, residual=residual)


@multiply.register_fake
def _gemm_shape(x: list[Tensor], *others: Any) -> Tensor:
    shape, dtype, kernel = others[2:5]
    return x[0].new_empty(x[0].shape[0], _kernels(kernel).gemm.channels(shape[0]), dtype=dtype)
