"""Codes from packed weights. A code of b < 8 bits lies in the top b bits of an int8: 2^(8 - b) times its value."""

import triton
import triton.language as tl


@triton.jit
def interleaved_channel(byte):
    """The channel of byte 4 t + 2 p + j of 16 in the order of bfloat16 operands: 8 j + 2 t + p."""
    return byte // 16 * 16 + byte % 2 * 8 + byte // 4 % 4 * 2 + byte // 2 % 2


@triton.jit
def interleaved_place(channel):
    """The inverse of `interleaved_channel`: channel 8 j + 2 t + p of 16 is at place 4 t + 2 p + j."""
    return channel // 16 * 16 + channel // 2 % 4 * 4 + channel % 2 * 2 + channel // 8 % 2


@triton.jit
def load_plane(row, channel, inside, PACK: tl.constexpr, BITS: tl.constexpr, INTERLEAVED: tl.constexpr):
    """The bits of channels [k] in a plane of BITS bits, each at the top of a byte: uint8 [n, k].

    row: pointers [n, 1] to the plane's rows. In every PACK channels byte j holds channels j + i PACK BITS / 8,
    i = 0 .. 8 / BITS - 1, each in its bits BITS i .. BITS i + BITS - 1.
    """
    if INTERLEAVED and PACK == 128:
        # a word of two bytes has channels c and c + 8
        part = channel % 128 // 16
        word = channel // 128 * (8 * BITS) + part % BITS * 8 + channel % 8
        word = tl.max_contiguous(tl.multiple_of(word, 8), 8)
        shift = (channel // 8 % 2 * 8 + part // BITS * BITS).to(tl.int16)
        words = tl.load(row.to(tl.pointer_type(tl.int16)) + word[None, :], mask=inside, other=0)
        return (words >> shift[None, :] << (8 - BITS)).to(tl.uint8)
    else:
        if INTERLEAVED:
            channel = interleaved_place(channel)
        SPAN: tl.constexpr = PACK * BITS // 8
        TOP: tl.constexpr = 256 - 2 ** (8 - BITS)
        byte = channel // PACK * SPAN + channel % SPAN
        shift = (8 - BITS - channel % PACK // SPAN * BITS).to(tl.uint8)
        return (tl.load(row + byte[None, :], mask=inside, other=0) << shift[None, :]) & TOP


@triton.jit
def load_codes(row, channel, inside, K, w):
    """Codes int8 [n, k] of channels [k], at the top of their bytes. row: pointers [n, 1]; w: `Weights`.

    Planes of 4, 2 and 1 bits, as the code's width has them, follow one another in a row, the highest first.
    """
    if w.BITS == 8:
        return tl.load(row + channel[None, :], mask=inside, other=0)
    else:
        FOUR: tl.constexpr = w.BITS // 4 * 4  # bits that the plane of four has, and so on
        TWO: tl.constexpr = w.BITS % 4 // 2 * 2
        if FOUR:
            packed = load_plane(row, channel, inside, w.PACK, 4, w.INTERLEAVED)
            if TWO:
                packed |= load_plane(row + K // 8 * 4, channel, inside, w.PACK, 2, w.INTERLEAVED) >> 4
        else:
            packed = load_plane(row, channel, inside, w.PACK, 2, w.INTERLEAVED)
        if w.BITS % 2:
            ABOVE: tl.constexpr = FOUR + TWO
            packed |= load_plane(row + K // 8 * ABOVE, channel, inside, w.PACK, 1, w.INTERLEAVED) >> ABOVE
        return packed.to(tl.int8, bitcast=True)


@triton.jit
def low_nibbles(packed):
    """The low nibbles of bytes as codes at the top of an int8."""
    return (packed << 4).to(tl.int8, bitcast=True)


@triton.jit
def high_nibbles(packed):
    """The high nibbles of bytes as codes at the top of an int8."""
    return (packed & 0xF0).to(tl.int8, bitcast=True)


@triton.jit
def from_e2m1(code):
    """float32 of an e2m1 pattern at the top of a byte, by way of a float16 with the same mantissa."""
    bits = code.to(tl.int16)
    return ((bits & 0x70) << 5 | (bits & 0x80) << 8).to(tl.float16, bitcast=True).to(tl.float32) * 16384.0


@triton.jit
def from_e4m3(code):
    """float32 of an e4m3 pattern, by way of a float16 with the same mantissa."""
    bits = code.to(tl.int16)
    return ((bits & 0x7F) << 7 | (bits & 0x80) << 8).to(tl.float16, bitcast=True).to(tl.float32) * 256.0


@triton.jit
def from_e8m0(code):
    """float32 of an e8m0 pattern: 2^(code - 127)."""
    return (code.to(tl.int32) << 23).to(tl.float32, bitcast=True)


@triton.jit
def decode_codes(codes, NUMBER: tl.constexpr):
    """float32 of codes int8: integers (as lifted as they are), patterns e4m3, or patterns e2m1 at the top of a byte."""
    if NUMBER == "int":
        return codes.to(tl.float32)
    elif NUMBER == "fp8_e4m3":
        return from_e4m3(codes)
    else:
        return from_e2m1(codes)


@triton.jit
def load_interleaved_nibbles(row, channel, inside, PACK: tl.constexpr):
    """Codes int8 [n, k] of 4 bits in the order of bfloat16 operands, at the top of their bytes.

    row: int16 pointers [n, 1]. Of 16 bytes of a half block, word w of 16 bits holds channels w and 8 + w.
    """
    word = channel // PACK * (PACK // 4) + channel % (PACK // 2) // 16 * 8 + channel % 8
    word = tl.max_contiguous(tl.multiple_of(word, 8), 8)
    shift = (channel // 8 % 2 * 8 + channel % PACK // (PACK // 2) * 4).to(tl.int16)
    return (tl.load(row + word[None, :], mask=inside, other=0) >> shift[None, :] << 4).to(tl.int8)
