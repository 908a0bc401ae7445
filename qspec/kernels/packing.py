"""How quantized weights are laid out in memory and on disk: the layout that every kernel template reads.

It has a number of its own, `catalog.PACKING`, in an artifact's manifest.

Codes, W [N, K] (N output, K input channels):

    8 bits   int8 [N, K], as they are
    b bits   uint8 [N, K b/8]: bit planes one after another, each code cut into pieces of 4, 2 and 1 bits, the highest
             first (`catalog.planes`):

             b      2     3       4     5       6       7
             planes 2     2 + 1   4     4 + 1   4 + 2   4 + 2 + 1

A plane of p bits is uint8 [N, K p/8], along K in blocks of P = 128 codes (64 or 32 where 128 does not divide K).
Byte j of a block, j < H = P p/8, holds the pieces of channels j, j + H, j + 2H, ... from its lowest bits up. One
block of 128:

    bit     7   6   5   4   3   2   1   0     p = 4, H = 64
          +---------------+---------------+
 byte 0   |      64       |       0       |   channels; at b = 4 two's complement nibbles, -8 .. 7
 byte 1   |      65       |       1       |
   ...    |      ...      |      ...      |
 byte 63  |     127       |      63       |
          +---------------+---------------+

    bit     7   6   5   4   3   2   1   0     p = 2, H = 32
          +-------+-------+-------+-------+
 byte 0   |  96   |  64   |  32   |   0   |
   ...    |  ...  |  ...  |  ...  |  ...  |
 byte 31  |  127  |  95   |  63   |  31   |
          +-------+-------+-------+-------+

    bit     7   6   5   4   3   2   1   0     p = 1, H = 16
          +---+---+---+---+---+---+---+---+
 byte 0   |112|96 |80 |64 |48 |32 |16 | 0 |
   ...    |   |   |   |   |   |   |   |   |
 byte 15  |127|111|95 |79 |63 |47 |31 |15 |
          +---+---+---+---+---+---+---+---+

A kernel shifts each piece to the top of a byte and the lower planes below the higher ones, and so has 2^(8 - b) times
the codes as int8 operands, without a sign to restore; the factor goes into the scale. At four bits `byte << 4` and
`byte & 0xF0` are two contiguous operands, without a shuffle.

Where weights of 2 to 4 bits meet 16-bit activations (`GemmKernel.interleaved`), the codes of every 16 channels are in
another order before they are packed, that of the registers of a bfloat16 operand on the tensor cores: a word of a plane
has four channels of one thread 8 / p times, and `word >> p i & mask` two of them, in place. Byte 4 t + 2 p + j has the
pieces of channel 8 j + 2 t + p of its 16:

    byte       0   1   2   3   4   5   6   7   8   9  10  11  12  13  14  15
    channel    0   8   1   9   2  10   3  11   4  12   5  13   6  14   7  15

4-bit floats (mxfp4, nvfp4) are e2m1 patterns in pairs, as the tensor cores take them: byte j has channel 2j in its low
nibble and 2j + 1 in its high one, a block of P = 2.

Scales are [groups, N] (groups = 1 per channel): a kernel reads one group of many channels at once.
They are float16 for groups, float32 per channel, and for blocks of 4-bit floats uint8: patterns e8m0 of mxfp4, e4m3
of nvfp4, whose `unit` is float32 [N] (`qspec.numerics`). Zero points are int8 [groups, N] for codes of more than
4 bits, and for others uint8 [groups, ceil(N/2)] with channel 2i in the low and channel 2i + 1 in the high nibble
of byte i. Biases are float32 [N].

Gate and up that one GEMM gives as silu(gate) up (`GemmKernel.gated`) are stored apart. Where they are put together,
8 channels of gate and the same 8 of up follow one another: rows r and r + 8 of the 16 that a warp multiplies are one
thread's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from qspec import numerics
from qspec.catalog import GATE, GemmKernel, LayerKernels, NoKernel, planes
from qspec.errors import InputError
from qspec.formats import zero_bits
from qspec.numerics import Quantized
from qspec.transforms import InputTransform

NIBBLES = 2  # zero points a byte at 4 bits
ORDER = tuple(8 * j + 2 * t + p for t in range(4) for p in range(2) for j in range(2))  # see the drawing above


def pack(codes: Tensor, bits: int, block: int) -> Tensor:
    """Codes int8 [N, K] of `bits` bits -> uint8 [N, K bits/8], see the drawings above; 8 bits stay as they are.

    `block` divides K.
    """
    if bits == 8:
        return codes
    patterns, low = codes.view(torch.uint8), bits
    packed = []
    for plane in planes(bits):
        low -= plane
        packed.append(_pack_plane((patterns >> low) & (2**plane - 1), plane, block))
    return torch.cat(packed, dim=1)


def unpack(packed: Tensor, bits: int, block: int) -> Tensor:
    """uint8 [N, K bits/8] -> codes int8 [N, K] of `bits` bits: the inverse of `pack`."""
    if bits == 8:
        return packed
    channels = packed.shape[1] * 8 // bits
    parts = torch.split(packed, [channels * plane // 8 for plane in planes(bits)], dim=1)
    patterns, low = torch.zeros(packed.shape[0], channels, dtype=torch.uint8, device=packed.device), bits
    for plane, part in zip(planes(bits), parts, strict=True):
        low -= plane
        patterns |= _unpack_plane(part, plane, block) << low
    return _signed(patterns, bits)


def interleave(codes: Tensor) -> Tensor:
    """Codes [N, K] in the order in which `pack` takes interleaved ones: each 16 by `ORDER`."""
    return codes.reshape(codes.shape[0], -1, len(ORDER))[..., list(ORDER)].reshape(codes.shape)


def deinterleave(codes: Tensor) -> Tensor:
    """The inverse of `interleave`."""
    back = [ORDER.index(channel) for channel in range(len(ORDER))]
    return codes.reshape(codes.shape[0], -1, len(ORDER))[..., back].reshape(codes.shape)


def in_turn(joined: Tensor, dim: int) -> Tensor:
    """Channels of gate, then as many of up, along `dim` -> `GATE` of each in turn."""
    before, channels, behind = joined.shape[:dim], joined.shape[dim], joined.shape[dim + 1 :]
    both = joined.reshape(*before, 2, channels // (2 * GATE), GATE, *behind)
    return both.transpose(dim, dim + 1).reshape(joined.shape)


def _pack_plane(pieces: Tensor, plane: int, block: int) -> Tensor:
    """Pieces of `plane` bits, uint8 [N, K] -> uint8 [N, K plane/8]."""
    channels = pieces.reshape(pieces.shape[0], -1, 8 // plane, block * plane // 8).unbind(2)
    packed = torch.zeros_like(channels[0])
    for index, piece in enumerate(channels):
        packed |= piece << (plane * index)
    return packed.reshape(pieces.shape[0], -1)


def _unpack_plane(packed: Tensor, plane: int, block: int) -> Tensor:
    """uint8 [N, K plane/8] -> pieces of `plane` bits, uint8 [N, K]."""
    parts = packed.reshape(packed.shape[0], -1, block * plane // 8)
    pieces = [(parts >> shift) & (2**plane - 1) for shift in range(0, 8, plane)]
    return torch.stack(pieces, dim=2).reshape(packed.shape[0], -1)


def pack_zeros(zeros: Tensor, bits: int) -> Tensor:
    """Zero points int8 [groups, N] of codes of `bits` bits -> uint8 [groups, ceil(N/2)]; more than 4 bits stay.

    An odd N leaves a nibble of 0.
    """
    if zero_bits(bits) == 8:
        return zeros
    pairs = torch.nn.functional.pad(zeros, (0, zeros.shape[1] % NIBBLES)).view(torch.uint8)
    return (pairs[:, 0::2] & 0xF) | (pairs[:, 1::2] << 4)


def unpack_zeros(packed: Tensor, bits: int, channels: int) -> Tensor:
    """uint8 [groups, ceil(N/2)] -> zero points int8 [groups, N]: the inverse of `pack_zeros`."""
    if zero_bits(bits) == 8:
        return packed
    pairs = torch.stack((_signed(packed & 0xF, 4), _signed(packed >> 4, 4)), dim=2)
    return pairs.reshape(packed.shape[0], -1)[:, :channels]


def _signed(patterns: Tensor, bits: int) -> Tensor:
    """uint8 of `bits` bits as two's complement, int8: (n ^ half) - half keeps 0 .. half - 1, moves the rest below 0."""
    half: int = 2 ** (bits - 1)
    return (patterns.view(torch.int8) ^ half) - half


@dataclass(frozen=True)
class PackedLinear:
    """One quantized linear in the layout of this module's docstring, with the kernels that run it.

    Unsigned codes are packed as signed ones, half their range lower, as are their zero points.

    out_features: N; of a gated GEMM Y has half as many. codes: int8 [N, K] or uint8 [N, K bits/8].
    scale: [groups, N]. unit: None but for nvfp4. zero: None if symmetric.
    bias: float32 [N].
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
    unit: Tensor | None = None

    @classmethod
    def from_quantized(
        cls,
        quantized: Quantized,
        kernels: LayerKernels,
        bias: Tensor | None = None,
        transform: InputTransform | None = None,
    ) -> PackedLinear:
        """Packs the codes of W [N, K] for the kernels that were chosen for them.

        Raises NoKernel where these cannot run at this K, or take neither such weights nor such a transform.
        """
        if not kernels.gemm.takes(quantized.format):
            raise NoKernel(f"{kernels.gemm.name} does not take weights in {quantized.format}")
        blocks = () if transform is None else transform.blocks
        if blocks != kernels.rotations:
            raise NoKernel(f"the kernels rotate in blocks of {kernels.rotations}, the transform in {blocks}")
        quantized = quantized.signed()
        rows, columns = quantized.codes.shape
        kernels.check(columns)
        bits = kernels.gemm.weight_bits
        in_order = interleave(quantized.codes) if kernels.gemm.interleaved else quantized.codes
        codes = pack(in_order, bits, kernels.gemm.pack_block(columns))
        zero = None if quantized.zero is None else pack_zeros(quantized.zero.T.contiguous(), bits)
        scale, unit = stored_scales(quantized)
        return cls(
            kernels,
            rows,
            columns,
            codes.contiguous(),
            scale,
            None if zero is None else zero.contiguous(),
            None if bias is None else bias.detach().float(),
            transform,
            unit,
        )

    @classmethod
    def merged(cls, parts: Sequence[PackedLinear]) -> PackedLinear:
        """Linears of one input, kernel and transform as one: W = [W0; W1; ...], its channels in their order.

        Of a gated kernel these are gate and up, whose channels come in turn; of a grouped one experts.
        """
        first = parts[0]
        in_pairs = first.kernels.gemm.gated and not first.kernels.gemm.experts

        def joined(tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
            whole = torch.cat(list(tensors), dim)
            return in_turn(whole, dim) if in_pairs else whole

        rows = sum(part.out_features for part in parts)
        zeros = [zeros for part in parts if (zeros := part.unpacked_zeros()) is not None]
        biases = [part.bias for part in parts if part.bias is not None]
        units = [part.unit for part in parts if part.unit is not None]
        assert len(biases) in (0, len(parts))
        assert all(part.kernels == first.kernels and part.transform is first.transform for part in parts)
        return replace(
            first,
            out_features=rows,
            codes=joined([part.codes for part in parts]),
            scale=joined([part.scale for part in parts], dim=1),
            zero=pack_zeros(joined(zeros, dim=1), first.kernels.gemm.weight_bits) if zeros else None,
            bias=joined(biases) if biases else None,
            unit=joined(units) if units else None,
        )

    def channels(self, first: int, last: int) -> PackedLinear:
        """The linear of the channels first .. last - 1: views, but of zero points."""
        zeros = self.unpacked_zeros()
        part = slice(first, last)
        return replace(
            self,
            out_features=last - first,
            codes=self.codes[part],
            scale=self.scale[:, part],
            zero=None if zeros is None else pack_zeros(zeros[:, part], self.kernels.gemm.weight_bits),
            bias=None if self.bias is None else self.bias[part],
            unit=None if self.unit is None else self.unit[part],
        )

    def unpacked_codes(self) -> Tensor:
        """int8 [N, K]."""
        gemm = self.kernels.gemm
        codes = unpack(self.codes, gemm.weight_bits, gemm.pack_block(self.in_features))
        return deinterleave(codes) if self.kernels.gemm.interleaved else codes

    def unpacked_zeros(self) -> Tensor | None:
        """int8 [groups, N], None if symmetric."""
        if self.zero is None:
            return None
        return unpack_zeros(self.zero, self.kernels.gemm.weight_bits, self.out_features)

    def unpacked_scales(self) -> Tensor:
        """float32 [groups, N]."""
        return unpacked_scales(self.scale, self.unit)

    def stored_bits(self) -> int:
        """Bits of codes, scales and zero points, as they lie in memory."""
        stored = (self.codes, self.scale, self.unit, self.zero)
        return sum(t.numel() * t.element_size() * 8 for t in stored if t is not None)

    def with_transform(self, transform: InputTransform | None) -> PackedLinear:
        """The same linear with another object as its transform: the one that its neighbours share."""
        return replace(self, transform=transform)

    def tensors(self) -> dict[str, Tensor]:
        """Everything that an artifact stores, by suffix; those of the transform start with `transform.`."""
        named: dict[str, Tensor | None] = {
            "codes": self.codes,
            "scale": self.scale,
            "unit": self.unit,
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
            tensors.get("unit"),
        )


def stored_scales(quantized: Quantized) -> tuple[Tensor, Tensor | None]:
    """The scales [groups, rows] as they are stored, and units float32 [rows] where the format has them."""
    scale, unit = quantized.scale, None
    if quantized.format.number.block:
        scale, unit = numerics.pack_scales(scale, quantized.format.number)
    return scale.T.clone(memory_format=torch.contiguous_format), unit  # one row, too, has a stride that TMA takes


def unpacked_scales(stored: Tensor, unit: Tensor | None) -> Tensor:
    """float32 [groups, rows]: the inverse of `stored_scales`."""
    if stored.dtype != torch.uint8:
        return stored.float()
    return numerics.unpack_scales(stored.T.contiguous(), unit).T


def layout(
    kernels: LayerKernels, out_features: int, in_features: int, bias: bool
) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    """suffix -> (dtype, shape) of every tensor of a packed linear."""
    gemm = kernels.gemm
    groups = in_features // (gemm.weight_group or in_features)
    expected: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {
        "codes": _codes_layout(gemm, out_features, in_features),
        "scale": (_scale_dtype(gemm), (groups, out_features)),
    }
    if gemm.format.unit_bits:
        expected["unit"] = (torch.float32, (out_features,))
    if not gemm.weight_symmetric:
        nibbles = zero_bits(gemm.weight_bits) == 4
        width = -(-out_features // NIBBLES) if nibbles else out_features
        expected["zero"] = (torch.uint8 if nibbles else torch.int8, (groups, width))
    if bias:
        expected["bias"] = (torch.float32, (out_features,))
    for index, block in enumerate(kernels.rotations):
        expected[f"transform.rotation{index}"] = (torch.float16, (block, block))
    if len(kernels.rotations) > 1:
        expected["transform.permutation"] = (torch.int32, (in_features,))
    return expected


def _scale_dtype(gemm: GemmKernel) -> torch.dtype:
    if gemm.format.block:
        return torch.uint8
    return torch.float16 if gemm.weight_group else torch.float32


def _codes_layout(gemm: GemmKernel, rows: int, columns: int) -> tuple[torch.dtype, tuple[int, ...]]:
    if gemm.weight_bits == 8:
        return torch.int8, (rows, columns)
    return torch.uint8, (rows, columns * gemm.weight_bits // 8)


def _check_tensor(name: str, tensor: Tensor | None, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    hint = "the artifact is damaged or of another version; compile the recipe again"
    if tensor is None:
        raise InputError("a tensor is missing", where=name, hint=hint)
    if tensor.dtype != dtype or tuple(tensor.shape) != shape:
        actual = f"{tensor.dtype} {list(tensor.shape)}".removeprefix("torch.")
        wanted = f"{dtype} {list(shape)}".removeprefix("torch.")
        raise InputError(f"a tensor is {actual}, not {wanted}", where=name, hint=hint)
    if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
        raise InputError("a tensor holds NaN or Inf", where=name, hint=hint)


def _transform(kernels: LayerKernels, tensors: Mapping[str, Tensor], where: str) -> InputTransform | None:
    """The input transform among the tensors; its permutation must name every channel once."""
    if not kernels.rotations:
        return None
    permutation = tensors.get("transform.permutation")
    if permutation is None:
        return InputTransform((tensors["transform.rotation0"],))
    if not _is_permutation(permutation):
        raise InputError("not a permutation of the input channels", where=f"{where}.transform.permutation")
    return InputTransform((tensors["transform.rotation0"], tensors["transform.rotation1"]), permutation)


def _is_permutation(channels: Tensor) -> bool:
    """Whether int32 [K] names every channel once."""
    named = torch.zeros(len(channels), dtype=torch.bool, device=channels.device)
    if bool(((channels >= 0) & (channels < len(channels))).all()):
        named[channels.long()] = True
    return bool(named.all())
