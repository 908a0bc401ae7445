"""How quantized weights are laid out in memory and on disk: the layout that every kernel template reads.

Codes, W [N, K] (N output, K input channels):

    8 bits   int8 [N, K], as they are
    4 bits   uint8 [N, K/2]; along K in blocks of P = 128 codes (64 or 32 where 128 does not divide K);
             byte j of a block holds code j (first half) in its low nibble and code j + P/2 (second
             half) in its high nibble

                 bit     7   6   5   4   3   2   1   0            one block, P = 128, H = P/2 = 64
                       +---------------+---------------+
              byte 0   |  code 64      |  code 0       |          two's complement nibbles, -8 .. 7
              byte 1   |  code 65      |  code 1       |
                ...    |   ...         |   ...         |
              byte 63  |  code 127     |  code 63      |
                       +---------------+---------------+

             so that `byte << 4` and `byte & 0xF0`, read as int8, are two contiguous operands of 16 times the
             codes, without a shuffle; the 1/16 goes into the scale.

Scales are [groups, N] (groups = 1 per channel): a kernel reads one group of many channels at once.
They are float16 for groups, float32 per channel. Zero points have the width of the codes: int8
[groups, N], or at 4 bits uint8 [groups, ceil(N/2)] with channel 2i in the low and channel 2i + 1 in
the high nibble of byte i. Biases are float32 [N].
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from qspec.catalog import GemmKernel, LayerKernels, kernels_for, pack_block
from qspec.errors import InputError
from qspec.formats import Scheme
from qspec.numerics import Quantized
from qspec.transforms import InputTransform

NIBBLES = 2  # codes a byte at 4 bits


def pack(codes: Tensor, block: int) -> Tensor:
    """4-bit codes int8 [N, K] -> uint8 [N, K/2]; see the drawing above. `block` divides K."""
    halves = codes.reshape(codes.shape[0], -1, NIBBLES, block // NIBBLES).to(torch.uint8)
    low, high = halves.unbind(2)
    return ((low & 0xF) | (high << 4)).reshape(codes.shape[0], -1)


def unpack(packed: Tensor, block: int) -> Tensor:
    """uint8 [N, K/2] -> 4-bit codes int8 [N, K]: the inverse of `pack`."""
    halves = packed.reshape(packed.shape[0], -1, 1, block // NIBBLES)
    codes = torch.cat((_signed(halves), _signed(halves >> 4)), dim=2)
    return codes.reshape(packed.shape[0], -1)


def pack_zeros(zeros: Tensor) -> Tensor:
    """4-bit zero points int8 [groups, N] -> uint8 [groups, ceil(N/2)]; an odd N leaves a nibble of 0."""
    pairs = torch.nn.functional.pad(zeros, (0, zeros.shape[1] % NIBBLES)).to(torch.uint8)
    return (pairs[:, 0::2] & 0xF) | (pairs[:, 1::2] << 4)


def unpack_zeros(packed: Tensor, channels: int) -> Tensor:
    """uint8 [groups, ceil(N/2)] -> 4-bit zero points int8 [groups, N]: the inverse of `pack_zeros`."""
    pairs = torch.stack((_signed(packed), _signed(packed >> 4)), dim=2)
    return pairs.reshape(packed.shape[0], -1)[:, :channels]


def _signed(nibbles: Tensor) -> Tensor:
    """The low four bits as two's complement, int8: (n ^ 8) - 8 keeps 0..7 and maps 8..15 to -8..-1."""
    return ((nibbles & 0xF).to(torch.int8) ^ 8) - 8


@dataclass(frozen=True)
class PackedLinear:
    """One quantized linear in the layout of this module's docstring, with the kernels that run it.

    codes: int8 [N, K] or uint8 [N, K/2]. scale: [groups, N]. zero: None if symmetric. bias: float32 [N].
    transform: of the input, before it is quantized; linears that read one input share the object.
    """

    kernels: LayerKernels
    out_features: int
    in_features: int
    codes: Tensor
    scale: Tensor
    zero: Tensor | None
    bias: Tensor | None
    transform: InputTransform | None

    @classmethod
    def from_quantized(
        cls, quantized: Quantized, bias: Tensor | None, transform: InputTransform | None, scheme: Scheme
    ) -> PackedLinear:
        """Packs the codes of W [N, K]. Raises NoKernel where nothing can run this scheme at this K."""
        kernels = kernels_for(scheme, () if transform is None else transform.blocks)
        rows, columns = quantized.codes.shape
        kernels.check(columns)
        four_bit = kernels.gemm.weight_bits == 4
        codes = pack(quantized.codes, pack_block(columns)) if four_bit else quantized.codes
        zero = None if quantized.zero is None else quantized.zero.T
        if zero is not None and four_bit:
            zero = pack_zeros(zero)
        return cls(
            kernels,
            rows,
            columns,
            codes.contiguous(),
            quantized.scale.T.contiguous(),
            None if zero is None else zero.contiguous(),
            None if bias is None else bias.detach().float(),
            transform,
        )

    def unpacked_codes(self) -> Tensor:
        """int8 [N, K]."""
        four_bit = self.kernels.gemm.weight_bits == 4
        return unpack(self.codes, pack_block(self.in_features)) if four_bit else self.codes

    def unpacked_zeros(self) -> Tensor | None:
        """int8 [groups, N], None if symmetric."""
        if self.zero is None:
            return None
        four_bit = self.kernels.gemm.weight_bits == 4
        return unpack_zeros(self.zero, self.out_features) if four_bit else self.zero

    def stored_bits(self) -> int:
        """Bits of codes, scales and zero points, as they lie in memory."""
        stored = [self.codes, self.scale, *([] if self.zero is None else [self.zero])]
        return sum(t.numel() * t.element_size() * 8 for t in stored)

    def with_transform(self, transform: InputTransform | None) -> PackedLinear:
        """The same linear with another object as its transform: the one that its neighbours share."""
        return replace(self, transform=transform)

    def tensors(self) -> dict[str, Tensor]:
        """Everything that an artifact stores, by suffix; those of the transform start with `transform.`."""
        named: dict[str, Tensor | None] = {
            "codes": self.codes,
            "scale": self.scale,
            "zero": self.zero,
            "bias": self.bias,
        }
        if self.transform is not None:
            for index, rotation in enumerate(self.transform.rotations):
                named[f"transform.rotation{index}"] = rotation
            named["transform.permutation"] = self.transform.permutation
        return {suffix: tensor.contiguous() for suffix, tensor in named.items() if tensor is not None}

    @classmethod
    def from_tensors(
        cls,
        kernels: LayerKernels,
        out_features: int,
        in_features: int,
        tensors: Mapping[str, Tensor],
        *,
        where: str,
        bias: bool = False,
    ) -> PackedLinear:
        """The inverse of `tensors`. Raises InputError naming a tensor that is missing, unknown or misshapen.

        where: the linear's name. bias: whether it has one.
        """
        kernels.check(in_features, where)
        expected = layout(kernels, out_features, in_features, bias)
        for suffix, (dtype, shape) in expected.items():
            _check_tensor(f"{where}.{suffix}", tensors.get(suffix), dtype, shape)
        if unknown := sorted(set(tensors) - set(expected)):
            raise InputError("a tensor that this linear does not have", where=f"{where}.{unknown[0]}")
        return cls(
            kernels,
            out_features,
            in_features,
            tensors["codes"],
            tensors["scale"],
            tensors.get("zero"),
            tensors.get("bias"),
            _transform(kernels, tensors, where),
        )


def layout(
    kernels: LayerKernels, out_features: int, in_features: int, bias: bool
) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    """suffix -> (dtype, shape) of every tensor of a packed linear."""
    gemm = kernels.gemm
    groups = in_features // (gemm.weight_group or in_features)
    expected: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {
        "codes": _codes_layout(gemm, out_features, in_features),
        "scale": (torch.float16 if gemm.weight_group else torch.float32, (groups, out_features)),
    }
    if not gemm.weight_symmetric:
        four_bit = gemm.weight_bits == 4
        width = -(-out_features // NIBBLES) if four_bit else out_features
        expected["zero"] = (torch.uint8 if four_bit else torch.int8, (groups, width))
    if bias:
        expected["bias"] = (torch.float32, (out_features,))
    rotations = kernels.row.rotations if kernels.row else ()
    for index, block in enumerate(rotations):
        expected[f"transform.rotation{index}"] = (torch.float16, (block, block))
    if len(rotations) > 1:
        expected["transform.permutation"] = (torch.int32, (in_features,))
    return expected


def _codes_layout(gemm: GemmKernel, rows: int, columns: int) -> tuple[torch.dtype, tuple[int, ...]]:
    if gemm.weight_bits == 4:
        return torch.uint8, (rows, columns // NIBBLES)
    return torch.int8, (rows, columns)


def _check_tensor(name: str, tensor: Tensor | None, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    hint = "the artifact is damaged or of another version; compile the recipe again"
    if tensor is None:
        raise InputError("a tensor is missing", where=name, hint=hint)
    if tensor.dtype != dtype or tuple(tensor.shape) != shape:
        found = f"{tensor.dtype} {list(tensor.shape)}".removeprefix("torch.")
        wanted = f"{dtype} {list(shape)}".removeprefix("torch.")
        raise InputError(f"a tensor is {found}, not {wanted}", where=name, hint=hint)
    if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
        raise InputError("a tensor holds NaN or Inf", where=name, hint=hint)


def _transform(kernels: LayerKernels, tensors: Mapping[str, Tensor], where: str) -> InputTransform | None:
    """The input transform among the tensors; its permutation must name every channel once."""
    if kernels.row is None or not kernels.row.rotations:
        return None
    permutation = tensors.get("transform.permutation")
    if permutation is None:
        return InputTransform((tensors["transform.rotation0"],))
    channels = torch.arange(permutation.numel(), dtype=permutation.dtype, device=permutation.device)
    if not torch.equal(permutation.sort().values, channels):
        raise InputError("not a permutation of the input channels", where=f"{where}.transform.permutation")
    return InputTransform((tensors["transform.rotation0"], tensors["transform.rotation1"]), permutation)
