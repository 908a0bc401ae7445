"""A quantized linear: prepares its input (transform, quantization), then multiplies with packed weights.

On a CUDA device the generated Triton kernels run; on a CPU the reference with the same integer
arithmetic. The device of the weights alone decides, `execution` says which, and neither stands in for
the other.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from qspec.errors import InputError, MachineError
from qspec.kernels import launch, ops, reference
from qspec.kernels.generate import library
from qspec.kernels.launch import PlacedTransform
from qspec.kernels.packing import PackedLinear
from qspec.kernels.reference import PreparedInput, ReferenceWeight
from qspec.models.inputs import Gated, LayerInput, Normed, width_of

Execution = Literal["reference", "triton"]


class QuantLinear(nn.Module):
    """y = T(x) W^T + b with W packed, and T(x) quantized where the scheme says so.

    Buffers codes, scale, unit, zero, bias in the layout of `qspec.kernels.packing`. Linears that read one input
    prepare it once: `multiply` takes what `prepare` of any of them made, if their activation quantization kernel and
    transform are the same. Of a gated kernel W is of gate and up, and y = f(gate) up.
    """

    codes: Tensor
    scale: Tensor
    unit: Tensor | None
    zero: Tensor | None
    bias: Tensor | None

    def __init__(self, packed: PackedLinear, kernel_folder: Path | None = None) -> None:
        """kernel_folder: the artifact's rendered kernels; None renders them into the user's cache."""
        super().__init__()
        self.kernels = packed.kernels
        self.rows = packed.out_features  # of W
        self.out_features = packed.kernels.gemm.channels(self.rows)
        self.in_features = packed.in_features
        self.transform = packed.transform
        for name in ("codes", "scale", "unit", "zero", "bias"):
            self.register_buffer(name, getattr(packed, name))
        self._gemm_text = ops.text_of(packed.kernels.gemm)
        self._row_text = ops.text_of(packed.kernels.row) if packed.kernels.row else ""
        self._folder_text = None if kernel_folder is None else str(kernel_folder)
        self._library = library(kernel_folder)
        self._weight: ReferenceWeight | None = None
        self._placed = self._place()

    @property
    def execution(self) -> Execution:
        """Which path runs where the weights are. Raises MachineError where none does."""
        kind = self.codes.device.type
        if kind == "cpu":
            return "reference"
        if kind == "cuda":
            return "triton"
        raise MachineError(f"quantized linears run on cpu and cuda, not on {kind}")

    @property
    def input_key(self) -> tuple[object, ...]:
        """Equal for linears that prepare an input identically: one activation quantization kernel, one transform."""
        return (self.kernels.row, self.transform)

    def prepare(self, given: LayerInput, live: Tensor | None = None) -> PreparedInput:
        """x [..., in], or what it is computed of -> codes and scales, or transformed floats. live: see `launch`."""
        self._check_width(width_of(given))
        if torch.compiler.is_compiling() and self.kernels.row is not None:
            return self._prepare_operator(given)
        if self.execution == "reference":
            return reference.prepare(self.kernels.row, self.transform, given)
        with torch.cuda.device(self.codes.device):
            return launch.prepare(self._library, self.kernels.row, self._placed, given, live)

    def multiply(self, prepared: PreparedInput, residual: Tensor | None = None) -> Tensor:
        """Y [..., out] in the dtype of the x that was prepared, added to the residual, which is alike, if there is one.

        The bits are those of `residual + multiply(prepared)`.
        """
        self._check_width(prepared.shape[-1])
        if residual is not None:
            self._check_residual(residual, prepared)
        if torch.compiler.is_compiling():
            return self._multiply_operator(prepared, residual)
        if self.execution == "reference":
            if self._weight is None:
                self._weight = ReferenceWeight.of(self.packed())
            return reference.multiply(self._weight, prepared, residual)
        with torch.cuda.device(self.codes.device):
            return launch.multiply(self._library, self.packed(), prepared, residual=residual)

    def _prepare_operator(self, given: LayerInput) -> PreparedInput:
        """`prepare` as one node of a compiled graph."""
        x = given if isinstance(given, Tensor) else given.x
        results = ops.prepare(
            x,
            given.up if isinstance(given, Gated) else None,
            given.gain if isinstance(given, Normed) else None,
            given.eps if isinstance(given, Normed) else 0.0,
            self._transform_tensors(),
            self._row_text,
            self._folder_text,
        )
        assert self.kernels.row is not None
        return launch.prepared(self.kernels.row, results, x)

    def _transform_tensors(self) -> list[Tensor]:
        transform = self.transform if self._placed is None else self._placed
        if transform is None:
            return []
        permutation = [] if transform.permutation is None else [transform.permutation]
        return [*transform.rotations, *permutation]

    def _multiply_operator(self, prepared: PreparedInput, residual: Tensor | None) -> Tensor:
        """`multiply` as one node of a compiled graph."""
        y: Tensor = ops.multiply(
            [prepared.values, prepared.scale, prepared.zero, prepared.unit],
            [self.codes, self.scale, self.zero, self.bias, self.unit],
            None if residual is None else residual.reshape(-1, self.out_features),
            [self.rows, self.in_features],
            prepared.dtype,
            self._gemm_text,
            self._folder_text,
        )
        return y.reshape(*prepared.shape[:-1], self.out_features)

    def forward(self, given: LayerInput) -> Tensor:
        x = given if isinstance(given, Tensor) else given.x
        if x.numel() == 0:
            return x.new_empty(*x.shape[:-1], self.out_features)
        return self.multiply(self.prepare(given))

    def packed(self) -> PackedLinear:
        """The value that this module holds, on its present device."""
        return PackedLinear(
            self.kernels,
            self.rows,
            self.in_features,
            self.codes,
            self.scale,
            self.zero,
            self.bias,
            self.transform,
            self.unit,
        )

    def share(self, packed: PackedLinear) -> None:
        """Takes the memory of the same linear, as a stack of experts has it; scales of groups are a copy."""
        for name in ("codes", "scale", "unit", "zero", "bias"):
            tensor = getattr(packed, name)
            setattr(self, name, None if tensor is None else tensor.contiguous())

    def extra_repr(self) -> str:
        row = f"{self.kernels.row.name} + " if self.kernels.row else ""
        return f"in={self.in_features}, out={self.out_features}, {row}{self.kernels.gemm.name}"

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> QuantLinear:
        """Moves to another device; `.to(dtype)` of a model leaves scales and bias as they are stored."""

        def keep_dtype(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        super()._apply(keep_dtype, recurse)  # type: ignore[no-untyped-call]
        self._weight = None
        self._placed = self._place()
        return self

    def _place(self) -> PlacedTransform | None:
        """The transform where kernels read it; None where none is, or the reference runs."""
        if self.transform is None or self.codes.device.type != "cuda":
            return None
        return PlacedTransform.of(self.transform, self.codes.device)

    def _check_width(self, width: int) -> None:
        if width != self.in_features:
            raise InputError(f"an input of {width} channels for a linear of {self.in_features}")

    def _check_residual(self, residual: Tensor, prepared: PreparedInput) -> None:
        shape = (*prepared.shape[:-1], self.out_features)
        if residual.shape != shape or residual.dtype != prepared.dtype:
            actual = f"{residual.dtype} {list(residual.shape)}"
            raise InputError(f"a residual {actual} for an output {prepared.dtype} {list(shape)}")
