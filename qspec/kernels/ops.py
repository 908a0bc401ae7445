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

from qspec.catalog import GemmKernel, LayerKernels, RowKernel
from qspec.kernels import launch, reference
from qspec.kernels.generate import library
from qspec.kernels.packing import PackedLinear
from qspec.kernels.reference import PreparedInput, ReferenceWeight
from qspec.models.inputs import Gated, LayerInput, Normed
from qspec.transforms import InputTransform


def text_of(kernel: GemmKernel | RowKernel) -> str:
    """A kernel as the operator takes it."""
    return json.dumps(asdict(kernel))


@lru_cache(maxsize=256)
def _kernels(text: str) -> LayerKernels:
    return LayerKernels(None, GemmKernel(**json.loads(text)))


@lru_cache(maxsize=256)
def _row(text: str) -> RowKernel:
    fields = json.loads(text)
    return RowKernel(**fields | {"rotations": tuple(fields["rotations"])})


@torch.library.custom_op("qspec::prepare", mutates_args=())
def prepare(
    x: Tensor,
    up: Tensor | None,
    gain: Tensor | None,
    eps: float,
    rotations: list[Tensor],
    permutation: Tensor | None,
    kernel: str,
    folder: str | None,
) -> list[Tensor]:
    """Codes, scales and zero points, or transformed floats, of what x is with `up` or `gain` (`models.inputs`).

    rotations, permutation: as `launch.PlacedTransform` has them on CUDA, as `InputTransform` on a CPU. kernel: of
    `text_of`. Results that a symmetric kernel or one without codes does not have are not in the list.
    """
    given: LayerInput = x if up is None else Gated(x, up)
    if gain is not None:
        given = Normed(x, gain, eps)
    row = _row(kernel)
    if x.device.type == "cpu":
        transform = InputTransform(tuple(rotations), permutation) if rotations else None
        prepared = reference.prepare(row, transform, given)
    else:
        placed = launch.PlacedTransform(tuple(rotations), permutation) if rotations else None
        with torch.cuda.device(x.device):
            prepared = launch.prepare(library(None if folder is None else Path(folder)), row, placed, given)
    parts = (prepared.values, prepared.scale, prepared.zero, prepared.unit)
    return [part for part in parts if part is not None]


@prepare.register_fake
def _prepared_shapes(x: Tensor, *others: Any) -> list[Tensor]:
    return list(launch.outputs(_row(others[5]), x.reshape(-1, x.shape[-1])).values())


@torch.library.custom_op("qspec::multiply", mutates_args=())
def multiply(
    values: Tensor,
    values_scale: Tensor | None,
    values_unit: Tensor | None,
    values_zero: Tensor | None,
    codes: Tensor,
    scale: Tensor,
    unit: Tensor | None,
    zero: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    rows: int,
    columns: int,
    dtype: torch.dtype,
    kernel: str,
    folder: str | None,
) -> Tensor:
    """Y [M, N] in `dtype`, of prepared values [M, K] and a packed weight, added to a residual if there is one.

    rows, columns: N, of a gated kernel twice that, and K. kernel: of `text_of`.
    """
    packed = PackedLinear(_kernels(kernel), rows, columns, codes, scale, zero, bias, None, unit)
    shape = torch.Size((values.shape[0], columns))
    prepared = PreparedInput(values, values_scale, values_zero, shape, dtype, values_unit)
    if values.device.type == "cpu":
        return reference.multiply(ReferenceWeight.of(packed), prepared, residual)
    with torch.cuda.device(values.device):
        rendered = library(None if folder is None else Path(folder))
        return launch.multiply(rendered, packed, prepared, residual=residual)


@multiply.register_fake
def _product_shape(values: Tensor, *others: Any) -> Tensor:
    rows, _, dtype, kernel = others[9:13]
    return values.new_empty(values.shape[0], _kernels(kernel).gemm.channels(rows), dtype=dtype)
