"""Allocates outputs and launches the generated kernels on the tensors of one linear."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from qspec.catalog import RowKernel
from qspec.errors import InputError
from qspec.kernels import tuned
from qspec.kernels.generate import KernelLibrary
from qspec.kernels.packing import PackedLinear
from qspec.kernels.reference import CODES, PreparedInput
from qspec.transforms import InputTransform

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class PlacedTransform:
    """An input transform as the row kernels read it, on one device.

    rotations: float16 [block, block]. destination: int32 [K], the inverse permutation, or None.
    """

    rotations: tuple[Tensor, ...]
    destination: Tensor | None

    @classmethod
    def of(cls, transform: InputTransform, device: torch.device) -> PlacedTransform:
        placed = transform.to(device)
        destination = None
        if placed.permutation is not None:
            destination = torch.empty_like(placed.permutation)
            channels = torch.arange(destination.numel(), dtype=destination.dtype, device=device)
            destination[placed.permutation.long()] = channels
        return cls(tuple(r.contiguous() for r in placed.rotations), destination)

    def arguments(self) -> dict[str, Tensor]:
        """The parameters of a row kernel that hold the transform."""
        named = {f"rotation{index}": rotation for index, rotation in enumerate(self.rotations)}
        return named if self.destination is None else {**named, "destination": self.destination}


def prepare(
    library: KernelLibrary, row: RowKernel | None, transform: PlacedTransform | None, x: Tensor
) -> PreparedInput:
    """x [..., K] through the row kernel, as `reference.prepare` defines it."""
    if x.dtype not in DTYPES:
        raise InputError(f"the kernels take float32, float16 and bfloat16, not {x.dtype}")
    rows = x.reshape(-1, x.shape[-1]).contiguous()
    if row is None:
        return PreparedInput(rows, None, None, x.shape, x.dtype)
    arguments = {"x": rows, **(transform.arguments() if transform else {})}
    results = _outputs(row, rows)
    if rows.shape[0]:
        library.module(row).run(**arguments, **results)
    values = results["out"] if row.bits == 16 else results["codes"]
    return PreparedInput(values, results.get("scale"), results.get("zero"), x.shape, x.dtype)


def _outputs(row: RowKernel, rows: Tensor) -> dict[str, Tensor]:
    """What the row kernel fills, by parameter."""
    if row.bits == 16:
        return {"out": torch.empty_like(rows)}
    scales = ((rows.shape[1] // row.group) if row.group else 1, rows.shape[0])
    results = {
        "codes": torch.empty(rows.shape, dtype=CODES[row.codes], device=rows.device),
        "scale": torch.empty(scales, dtype=torch.float32, device=rows.device),
    }
    if not row.symmetric:
        results["zero"] = torch.empty(scales, dtype=torch.int8, device=rows.device)
    return results


def multiply(
    library: KernelLibrary, packed: PackedLinear, prepared: PreparedInput, options: tuned.Options | None = None
) -> Tensor:
    """Y [..., N] in the input's dtype, as `reference.multiply` defines it.

    options: tile sizes; None takes the measured ones (`kernels.tuned`), or else those that the kernel's file chooses.
    """
    values = prepared.values
    out = torch.empty((values.shape[0], packed.out_features), dtype=prepared.dtype, device=values.device)
    arguments = {"weights": packed.codes, "weight_scale": packed.scale, "bias": packed.bias, "out": out}
    if packed.zero is not None:
        arguments["weight_zero"] = packed.zero
    if prepared.scale is None:
        arguments["x"] = values
    else:
        arguments |= {"activations": values, "activation_scale": prepared.scale}
        if prepared.zero is not None:
            arguments["activation_zero"] = prepared.zero
    if values.shape[0]:
        gemm, shape = packed.kernels.gemm, (packed.out_features, packed.in_features, values.shape[0])
        if options is None:
            options = tuned.options_for(gemm, *shape, values.device)
        library.module(gemm).run(**arguments, options=options)
    return out.reshape(*prepared.shape[:-1], packed.out_features)
