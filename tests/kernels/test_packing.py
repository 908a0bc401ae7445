"""Packing: exact inverses, the drawn layout, true sizes, and what is refused on loading."""

from __future__ import annotations

import hashlib
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from qspec import numerics
from qspec.catalog import PACK_BLOCKS, PACKING, NoKernel, kernels_for
from qspec.errors import InputError
from qspec.formats import NUMBER_FORMATS, Granularity, Scheme, TensorFormat
from qspec.kernels.packing import PackedLinear, deinterleave, interleave, pack, pack_zeros, unpack, unpack_zeros
from tests.kernels.cases import INTEGER, WEIGHT_ONLY, Format, random_linear, random_transform

BITS = range(2, 9)


def codes(rows: int, columns: int, seed: int, bits: int = 4) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    half = 2 ** (bits - 1)
    return torch.randint(-half, half, (rows, columns), dtype=torch.int8, generator=generator)


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from(BITS), st.integers(1, 9), st.integers(1, 6), st.sampled_from([32, 64, 128]), st.integers(0, 2**31)
)
def test_unpack_inverts_pack(bits: int, rows: int, blocks: int, block: int, seed: int) -> None:
    q = codes(rows, blocks * block, seed, bits)
    packed = pack(q, bits, block)
    assert packed.dtype == (torch.int8 if bits == 8 else torch.uint8)
    assert packed.shape == (rows, blocks * block * bits // 8)
    assert torch.equal(unpack(packed, bits, block), q)


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(BITS), st.integers(1, 9), st.integers(1, 33), st.integers(0, 2**31))
def test_unpack_zeros_inverts_pack_zeros(bits: int, groups: int, channels: int, seed: int) -> None:
    zeros = codes(groups, channels, seed, bits)
    packed = pack_zeros(zeros, bits)
    assert packed.shape == (groups, (channels + 1) // 2 if bits <= 4 else channels)
    assert torch.equal(unpack_zeros(packed, bits, channels), zeros)


@pytest.mark.parametrize("bits", [2, 4])
def test_every_byte_unpacks_and_packs_to_itself(bits: int) -> None:
    packed = torch.arange(256, dtype=torch.uint8).reshape(4, 64)
    assert torch.equal(pack(unpack(packed, bits, 128), bits, 128), packed)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("block", [32, 64, 128])
def test_each_bit_is_where_the_drawings_say(bits: int, block: int) -> None:
    """Bit by bit, from the statement: plane p starts at byte K x (bits of the planes before) / 8."""
    columns = 2 * block
    cut = {2: [2], 3: [2, 1], 4: [4], 5: [4, 1], 6: [4, 2], 7: [4, 2, 1], 8: [8]}[bits]
    q = codes(3, columns, seed=bits, bits=bits)
    packed = pack(q, bits, block)
    for row, k in ((0, 0), (1, block - 1), (2, block + block // 2 + 1), (0, columns - 1)):
        value, place, start = int(q[row, k]) % 2**bits, 0, 0
        for plane in cut:
            span = block * plane // 8
            inside = k % block
            byte = int(packed[row, start + k // block * span + inside % span]) % 256
            piece = (byte >> (plane * (inside // span))) % 2**plane
            place = place << plane | piece
            start += columns * plane // 8
        assert place == value


def test_the_layout_is_the_one_drawn() -> None:
    q = torch.zeros(1, 256, dtype=torch.int8)
    q[0, 0], q[0, 64] = 3, -2  # byte 0 of the first block: low nibble code 0, high nibble code 64
    q[0, 128 + 63], q[0, 128 + 127] = -8, 7  # the last byte of the second block
    packed = pack(q, 4, 128)
    assert packed[0, 0] == 0xE3
    assert packed[0, 127] == 0x78
    assert int((packed != 0).sum()) == 2


def test_interleaved_bytes_are_in_the_order_drawn() -> None:
    drawn = [0, 8, 1, 9, 2, 10, 3, 11, 4, 12, 5, 13, 6, 14, 7, 15]
    q = torch.arange(64, dtype=torch.int8).reshape(2, 32)
    assert interleave(q)[0].tolist() == [*drawn, *(16 + channel for channel in drawn)]
    assert torch.equal(deinterleave(interleave(q)), q)


def test_a_word_of_interleaved_nibbles_is_two_channels_at_a_time() -> None:
    """`word >> 4 i & 0x000F000F` holds channels c and c + 1 of an even c, as a register of a bfloat16 operand must."""
    packed = random_linear(Format(w_group=128, a_bits=16), 5, 256, seed=3)
    q = packed.unpacked_codes().int() & 15
    words = packed.codes.numpy().view("<u4")
    for t in range(4):  # the threads that share 16 channels; their words are next to each other
        for i, (half, channel) in enumerate(((0, 2 * t), (64, 2 * t), (0, 2 * t + 8), (64, 2 * t + 8))):
            pair = torch.from_numpy((words[:, t] >> 4 * i & 0x000F000F).astype("int64"))
            assert torch.equal(pair & 15, q[:, half + channel].long())
            assert torch.equal(pair >> 16, q[:, half + channel + 1].long())


def test_words_of_interleaved_planes_are_two_channels_at_a_time() -> None:
    """As above, of 3-bit codes: `word >> 2 i & 0x00030003` of the high bits, `>> i & 0x00010001` of the low one."""
    packed = random_linear(Format(w_bits=3, w_group=128, a_bits=16), 5, 256, seed=3)
    q = packed.unpacked_codes().long() & 7
    words = [packed.codes[:, part].contiguous().numpy().view("<u4") for part in (slice(64), slice(64, 96))]
    high, low = (torch.from_numpy(part.astype("int64")) for part in words)
    for step in range(8):  # of 16 channels of the first block
        for t in range(4):
            for pair in range(2):
                two = high[:, 4 * (step % 2) + t] >> 2 * (step // 2) + 8 * pair & 0x00030003
                one = low[:, t] >> step + 8 * pair & 0x00010001
                both = 2 * two + one
                channel = 16 * step + 2 * t + 8 * pair
                assert torch.equal(both & 7, q[:, channel])
                assert torch.equal(both >> 16, q[:, channel + 1])


def test_shifts_give_sixteen_times_the_codes() -> None:
    q = codes(3, 128, seed=5)
    packed = pack(q, 4, 128)
    low, high = (packed << 4).view(torch.int8), (packed & 0xF0).view(torch.int8)
    assert torch.equal(torch.cat((low, high), 1).int(), 16 * q.int())


@pytest.mark.parametrize(
    ("fmt", "bits"),
    [
        (Format(w_group=128), 4.125),
        (Format(w_group=128, w_symmetric=False), 4.15625),
        (Format(w_group=32), 4.5),
        (Format(w_bits=8), 8 + 32 / 256),
        (Format(w_bits=8, w_group=64, w_symmetric=False, a_bits=8), 8 + 24 / 64),
        (Format(w_symmetric=False), 4 + 36 / 256),
        (Format(w_bits=2, w_group=64, w_symmetric=False, a_bits=16), 2 + 20 / 64),
        (Format(w_bits=3, w_group=128, a_bits=16), 3.125),
        (Format(w_bits=5, w_group=64, w_symmetric=False, a_bits=16), 5 + 24 / 64),
        (Format(w_bits=7, a_bits=16), 7 + 32 / 256),
    ],
    ids=str,
)
def test_true_bits_a_weight(fmt: Format, bits: float) -> None:
    packed = random_linear(fmt, 64, 256, seed=1)
    assert packed.stored_bits() == 64 * 256 * bits
    assert packed.stored_bits() == fmt.scheme().weights.stored_bits(64, 256)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("group", [None, 1, 12, 24, 32, 48, 96, 192, 480])
def test_the_accounting_is_what_is_stored(bits: int, symmetric: bool, group: int | None) -> None:
    """An odd number of channels leaves half a byte of zero points in each group."""
    fmt = Format(w_bits=bits, w_group=group, w_symmetric=symmetric, a_bits=16)
    for rows in (1, 4, 7):
        packed = random_linear(fmt, rows, 960, seed=1)
        stored = packed.tensors()
        bytes_stored = sum(
            stored[n].numel() * stored[n].element_size() for n in ("codes", "scale", "zero") if n in stored
        )
        assert fmt.scheme().weights.stored_bits(rows, 960) == packed.stored_bits() == 8 * bytes_stored


@pytest.mark.parametrize(
    ("name", "granularity"), [("uint3", Granularity("group", 64)), ("uint4", Granularity("channel"))]
)
def test_unsigned_codes_keep_their_values(name: str, granularity: Granularity) -> None:
    """A shift of codes and zero points by half the range leaves every weight as it is, to the bit."""
    scheme = Scheme("unsigned", TensorFormat(NUMBER_FORMATS[name], granularity, symmetric=False))
    weight = torch.randn(7, 128) + 0.5
    quantized = numerics.quantize_weight(weight, scheme.weights)
    bits = scheme.weights.number.bits
    assert int(quantized.codes.min()) == 0
    assert int(quantized.codes.max()) == 2**bits - 1
    packed = PackedLinear.from_quantized(quantized, kernels_for(scheme))
    assert packed.kernels.gemm.weight_bits == bits
    zeros = packed.unpacked_zeros()
    assert zeros is not None
    number = NUMBER_FORMATS[f"int{bits}"]
    found = numerics.dequantize(packed.unpacked_codes(), packed.scale.T, zeros.T, number)
    assert torch.equal(found, quantized.dequantize())
    assert packed.stored_bits() == scheme.weights.stored_bits(7, 128)


@pytest.mark.parametrize("fmt", [*INTEGER, *WEIGHT_ONLY], ids=str)
def test_tensors_and_back(fmt: Format) -> None:
    columns = math.lcm(fmt.w_group or 1, fmt.a_group or 1, 256)
    weight = torch.randn(33, columns)
    quantized = numerics.quantize_weight(weight, fmt.scheme().weights)
    transform = random_transform((64, 64), columns, seed=2)
    kernels = kernels_for(fmt.scheme(), (64, 64))
    packed = PackedLinear.from_quantized(quantized, kernels, torch.randn(33), transform)
    found = PackedLinear.from_tensors(packed.kernels, 33, columns, packed.tensors(), where="q", bias=True)
    assert torch.equal(found.unpacked_codes(), quantized.codes)
    assert torch.equal(found.scale.T, quantized.scale)
    zeros = found.unpacked_zeros()
    assert (zeros is None) == (quantized.zero is None)
    if zeros is not None and quantized.zero is not None:
        assert torch.equal(zeros.T, quantized.zero)
    assert transform is not None
    assert found.transform is not None
    assert torch.equal(found.transform.apply(weight), transform.apply(weight))
    assert all(tensor.is_contiguous() for tensor in found.tensors().values())


def spoiled(name: str, tensor: Tensor) -> Tensor:
    """A tensor that cannot be right, of the right shape where that is the point."""
    if name == "scale.nan":
        return torch.full_like(tensor, float("nan"))
    if name.startswith("transform.permutation.") and not name.endswith(".short"):
        changed = tensor.clone()
        changed[5] = {"twice": int(tensor[4]), "negative": -1, "outside": len(tensor)}[name.rpartition(".")[2]]
        return changed
    return tensor[..., :-1] if name.endswith(".short") else tensor.double()


@pytest.mark.parametrize(
    "fault",
    [
        "codes.short",
        "codes.dtype",
        "scale.short",
        "scale.dtype",
        "scale.nan",
        "zero.short",
        "bias.dtype",
        "transform.rotation0.short",
        "transform.rotation1.dtype",
        "transform.permutation.short",
        "transform.permutation.twice",
        "transform.permutation.negative",
        "transform.permutation.outside",
    ],
)
def test_a_tensor_that_cannot_be_right_is_named(fault: str) -> None:
    suffix = fault.rpartition(".")[0]
    transform = random_transform((32, 32), 64, seed=0)
    packed = random_linear(Format(w_symmetric=False), 6, 64, seed=0, transform=transform)
    tensors = packed.tensors()
    tensors[suffix] = spoiled(fault, tensors[suffix])
    with pytest.raises(InputError) as caught:
        PackedLinear.from_tensors(packed.kernels, 6, 64, tensors, where="blocks[0].mlp.up", bias=True)
    assert caught.value.where == f"blocks[0].mlp.up.{suffix}"


@pytest.mark.parametrize("suffix", ["codes", "scale", "zero", "bias", "transform.rotation0", "transform.permutation"])
def test_a_missing_tensor_is_named(suffix: str) -> None:
    transform = random_transform((32, 32), 64, seed=0)
    packed = random_linear(Format(w_symmetric=False), 6, 64, seed=0, transform=transform)
    tensors = packed.tensors()
    del tensors[suffix]
    with pytest.raises(InputError, match="missing") as caught:
        PackedLinear.from_tensors(packed.kernels, 6, 64, tensors, where="up", bias=True)
    assert caught.value.where == f"up.{suffix}"


def test_a_tensor_too_many_is_named() -> None:
    packed = random_linear(Format(), 6, 64, seed=0)
    with pytest.raises(InputError, match="does not have") as caught:
        PackedLinear.from_tensors(packed.kernels, 6, 64, packed.tensors(), where="up", bias=False)
    assert caught.value.where == "up.bias"


def test_a_width_without_a_pack_block_is_refused() -> None:
    fmt = Format()
    quantized = numerics.quantize_weight(torch.randn(4, 48), fmt.scheme().weights)
    with pytest.raises(NoKernel, match="not a multiple of 32"):
        PackedLinear.from_quantized(quantized, kernels_for(fmt.scheme()))


def test_scales_of_one_group_are_a_row_as_long_as_there_are_channels() -> None:
    """TMA takes no stride of two bytes, whatever the number of rows."""
    assert random_linear(Format(w_group=64, a_bits=16), 40, 64, 0).scale.stride() == (40, 1)


def test_with_transform_shares_the_object() -> None:
    transform = random_transform((32,), 64, seed=0)
    packed = random_linear(Format(), 6, 64, seed=0, transform=transform)
    assert transform is not None
    other = replace(transform)
    assert packed.with_transform(other).transform is other


def test_kernels_for_other_weights_or_another_transform_are_refused() -> None:
    fmt, transform = Format(w_group=64), random_transform((32,), 64, seed=0)
    quantized = numerics.quantize_weight(torch.randn(4, 64), fmt.scheme().weights)
    for other in (Format(), Format(w_bits=8, w_group=64), Format(w_group=64, w_symmetric=False)):
        with pytest.raises(NoKernel, match="does not take weights in int4 per group 64 symmetric"):
            PackedLinear.from_quantized(quantized, kernels_for(other.scheme()))
    for rotations, found in (((64,), transform), ((), transform), ((32,), None)):
        with pytest.raises(NoKernel, match="the transform"):
            PackedLinear.from_quantized(quantized, kernels_for(fmt.scheme(), rotations), transform=found)


PACKED = {1: "66deebd5e9589b0c"}  # by the format's number: a change of this needs the next one


def test_the_bytes_of_packed_weights_are_those_of_their_formats_number() -> None:
    digest = hashlib.sha256()
    for bits in range(2, 9):
        codes = (torch.arange(3 * 128) * 37 % 2**bits - 2 ** (bits - 1)).to(torch.int8).reshape(3, 128)
        for block in PACK_BLOCKS:
            digest.update(pack(codes, bits, block).numpy().tobytes())
        digest.update(interleave(codes).numpy().tobytes())
        digest.update(pack_zeros(codes, bits).numpy().tobytes())
    assert digest.hexdigest()[:16] == PACKED[PACKING]
