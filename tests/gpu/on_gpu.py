"""Launches on the GPU into poisoned outputs, and what they are compared with."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from qspec.catalog import ActivationKernel, GemmKernel
from qspec.kernels import launch, reference, tuned
from qspec.kernels.generate import KernelLibrary
from qspec.kernels.launch import PlacedTransform
from qspec.kernels.linear import QuantLinear
from qspec.kernels.packing import PackedLinear
from qspec.kernels.reference import PreparedInput, ReferenceWeight
from qspec.models.inputs import LayerInput
from qspec.transforms import InputTransform
from tests.kernels.cases import (
    codes_that_differ,
    dequantized_input,
    poisoned_memory,
    random_input,
    random_transform,
    relative_error,
    scale_tolerance,
)


def moved(packed: PackedLinear, device: str) -> PackedLinear:
    tensors = {name: getattr(packed, name) for name in ("codes", "scale", "unit", "zero", "bias")}
    return replace(packed, **{name: None if t is None else t.to(device) for name, t in tensors.items()})


def on_cpu(prepared: PreparedInput) -> PreparedInput:
    tensors = {name: getattr(prepared, name) for name in ("values", "scale", "unit", "zero")}
    return replace(prepared, **{name: None if t is None else t.cpu() for name, t in tensors.items()})


def prepared_on_gpu(
    library: KernelLibrary, row: ActivationKernel | None, transform: InputTransform | None, given: LayerInput
) -> PreparedInput:
    device = given.device if isinstance(given, Tensor) else given.x.device
    placed = None if transform is None else PlacedTransform.of(transform, device)
    with poisoned_memory():
        return launch.prepare(library, row, placed, given)


def check_graphs_and_compiled(linear: QuantLinear) -> tuple[PreparedInput, Tensor]:
    """A linear of 4096 input channels gives the same in a CUDA graph and compiled. Returns what it was given."""
    x = random_input(17, 4096, 5, torch.bfloat16, device="cuda")
    prepared = linear.prepare(x)
    expected = linear.multiply(prepared)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = linear.multiply(prepared)
    for _ in range(3):
        found.fill_(float("nan"))
        graph.replay()
        assert torch.equal(found, expected)
    compiled = torch.compile(linear.multiply, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(prepared), expected)
    return prepared, x


def choices(kernel: GemmKernel, channels: int, columns: int, tokens: int) -> list[tuned.Options]:
    """One of each kind that is worth a measurement."""
    kinds = {}
    for options in tuned.candidates(kernel, channels, columns, tokens):
        kind = tuple(options.get(name) for name in ("BLOCK_N", "BLOCK_M", "CTAS_PER_SM", "K_SLICES"))
        kinds[kind, options.get("SPLIT", 0) > 1] = options
    return list(kinds.values())


def product(
    library: KernelLibrary,
    packed: PackedLinear,
    prepared: PreparedInput,
    options: tuned.Options | None,
    residual: Tensor | None = None,
) -> Tensor:
    with poisoned_memory():
        return launch.multiply(library, packed, prepared, options, residual)


def multiplied_on_gpu(library: KernelLibrary, packed: PackedLinear, prepared: PreparedInput) -> Tensor:
    with poisoned_memory():
        return launch.multiply(library, packed, prepared)


def check_integer_product(packed: PackedLinear, weight: ReferenceWeight, x: Tensor, library: KernelLibrary) -> None:
    """The GPU's product of what the GPU prepared is the reference's, bit for bit."""
    prepared = prepared_on_gpu(library, packed.kernels.row, None, x)
    found = multiplied_on_gpu(library, packed, prepared)
    assert torch.equal(found.cpu(), reference.multiply(weight, on_cpu(prepared)))


def check_plain_rows(row: ActivationKernel, x: Tensor, library: KernelLibrary) -> None:
    """Without a transform the GPU's codes, scales and zero points are the reference's."""
    found = on_cpu(prepared_on_gpu(library, row, None, x))
    expected = reference.prepare(row, None, x.cpu())
    assert torch.equal(found.scale, expected.scale)
    assert found.values.dtype == expected.values.dtype
    assert torch.equal(found.values.float(), expected.values.float())
    if not row.symmetric:
        assert torch.equal(found.zero, expected.zero)


def check_rotated_rows(
    row: ActivationKernel, columns: int, tokens: int, dtype: torch.dtype, library: KernelLibrary
) -> None:
    """After a transform codes may differ at ties, and the error is no larger than the reference's."""
    transform = random_transform(row.rotations, columns, seed=columns)
    assert transform is not None
    x = random_input(tokens, columns, tokens, dtype, device="cuda")
    found = on_cpu(prepared_on_gpu(library, row, transform, x))
    expected = reference.prepare(row, transform, x.cpu())
    assert torch.allclose(found.scale, expected.scale, rtol=scale_tolerance(row, dtype), atol=0)
    assert codes_that_differ(found, expected) < 2e-3 + 1.5 / x.numel()  # one code of a short row is more than 2e-3
    exact = expected_transform(transform, x)
    errors = [relative_error(dequantized_input(p), exact) for p in (found, expected)]
    assert errors[0] < 1.01 * errors[1]


def expected_transform(transform: InputTransform, x: Tensor) -> Tensor:
    """T(x) in float64 on the GPU, block by block: whole matrices of this size take too long."""

    def rotated(y: Tensor, rotation: Tensor) -> Tensor:
        return (y.reshape(-1, rotation.shape[0]) @ rotation.double().to(x.device)).reshape(x.shape)

    y = rotated(x.double(), transform.rotations[0])
    if transform.permutation is None:
        return y.cpu()
    return rotated(y[:, transform.permutation.long().to(x.device)], transform.rotations[1]).cpu()
