"""How GEMMs are launched: tile sizes and options. They decide the speed, and of sums of floats their order.

Rules were measured on an H100 and an H200 and come in the order in which they are tried. Stages in flight are not among
them: they are as many as shared memory holds, but for a few cases in which fewer were faster.
"""

from functools import cache
from typing import NamedTuple, TypedDict

import torch
import triton
import triton.language as tl

from .launch import capability_of

MULTIPROCESSORS = 132  # of an H100 and an H200: tiles of one wave, with one CTA on each
NEARLY_A_WAVE = 100  # tiles that leave no more than a quarter of the multiprocessors idle
SPLIT_WAVE = 128  # units that split-K aims at: a wave, in a number that tiles divide
THREE_WAVES = 400  # of narrow tiles, about; from there on wide ones load less
SHORT_K = 6144  # up to which slices of one CTA share K; of more, partial sums through memory are the smaller cost
SUMMING = 3.5  # microseconds that units take which add up a tile of many tokens
PARTIAL_SUMS = 1e-4  # and of each sum that one of them writes down
MOST_SPLIT = 8  # units of a tile: the last to come adds as many partial sums alone
MOST_STAGES = 12  # in flight: more hid no more latency
SHARED_BYTES = 228 * 1024  # of a multiprocessor of compute capability 9.0
CTA_BYTES = 1024  # of it, which each CTA takes besides its own
REGISTERS = 65536  # of a multiprocessor
MOST_REGISTERS = 248  # of a thread, in eights
BLOCK_CHANNELS = 128  # of a block: 128 bytes of 8-bit codes, a row within which TMA swizzles


class PortableTiles(TypedDict):
    """Output channels and tokens of a tile, and Triton's own options."""

    BLOCK_N: int
    BLOCK_M: int
    num_warps: int
    num_stages: int


class HopperTiles(TypedDict):
    """Of the kernel for 9.0.

    Output channels and tokens of a tile; blocks of 128 input channels of a stage, and stages in flight; units that
    share a tile's channels; CTAs on a multiprocessor; K slices: sets of warpgroups that take a unit's stages in turn.
    """

    BLOCK_N: int
    BLOCK_M: int
    K_BLOCKS: int
    STAGES: int
    SPLIT: int
    CTAS_PER_SM: int
    K_SLICES: int


class HopperFormat(NamedTuple):
    """What is multiplied.

    Bits of a weight and of an activation (16: bfloat16); channels that share a weight's scale (0: the whole row);
    whether codes are fp8_e4m3, not integers; whether Y is of gate and up together.
    """

    w_bits: int
    w_group: int
    a_bits: int
    fp8: bool
    gated: bool


class HopperChoice(NamedTuple):
    """What a rule says of `HopperTiles`; stages: the most of them."""

    block_n: int
    block_m: int
    blocks: int
    split: int = 1
    ctas: int = 1
    slices: int = 1
    stages: int = MOST_STAGES


class Wave(NamedTuple):
    """A tile on each multiprocessor: output channels, tokens, blocks of a stage; the time of 4096 input channels."""

    block_n: int
    block_m: int
    blocks: int
    microseconds: float


NIBBLE_WAVES = (  # of 4-bit weights on an H200
    Wave(128, 256, 1, 21.5),
    Wave(192, 192, 1, 24.5),
    Wave(192, 128, 1, 16.4),
    Wave(128, 128, 1, 12.5),
    Wave(192, 64, 1, 10.2),
    Wave(128, 64, 2, 7.4),
)
BYTE_WAVES = (  # and of 8-bit ones
    Wave(128, 256, 1, 23.0),
    Wave(192, 192, 1, 29.5),
    Wave(192, 128, 1, 18.0),
    Wave(128, 128, 1, 12.0),
    Wave(192, 64, 1, 13.3),
    Wave(128, 64, 2, 8.5),
)


def token_tile(tokens):
    """Tokens of a tile of few: the least that tensor cores take, 16, doubled up to 64."""
    return 16 if tokens <= 16 else 32 if tokens <= 32 else 64


def token_boxes(tokens):
    """The tokens of a tile as boxes of powers of two: all of them and 0, or of 192 128 and 64."""
    return (128, 64) if tokens == 192 else (tokens, 0)


def portable_tiles(tokens) -> PortableTiles:
    """Of a portable GEMM for M tokens; they decide the speed, never the result."""
    return {"BLOCK_N": 64, "BLOCK_M": token_tile(tokens), "num_warps": 4, "num_stages": 3}


def fp8_tiles(tokens, capability):
    """Of two e4m3 operands, which the tensor cores take as they are from compute capability 8.9 on.

    capability: 90 is 9.0, 0 the interpreter.
    """
    return {**portable_tiles(tokens), "NATIVE": capability >= 89}


def fp4_tiles(tokens, capability):
    """Of two operands of 4-bit floats; from 10.0 on the tensor cores take codes and scales, and 128 rows at once."""
    native = capability >= 100
    operand = tl.bfloat16 if capability else tl.float32  # the interpreter's bfloat16 is wrong
    sizes = {"BLOCK_N": 128 if native else 64, "NATIVE": native, "OPERAND": operand}
    return {**portable_tiles(tokens), **sizes}


def hopper_tiles(kind, M, N, K) -> HopperTiles:
    """Of the kernel for 9.0. kind: `HopperFormat`."""
    choice = weight_only_choice(kind, M, N) if kind.a_bits == 16 else quantized_choice(kind, M, N, K)
    stages = min(choice.stages, stages_in_shared(kind, choice))
    split = min(choice.split, MOST_SPLIT, triton.cdiv(K, BLOCK_CHANNELS * choice.blocks))  # a unit has a stage or more
    return {
        "BLOCK_N": choice.block_n,
        "BLOCK_M": 8 if M <= 8 else choice.block_m,  # the least of a warpgroup's instruction
        "K_BLOCKS": choice.blocks,
        "STAGES": stages - stages % choice.slices,  # a stage is always the same slice's
        "SPLIT": max(1, split),
        "CTAS_PER_SM": choice.ctas,
        "K_SLICES": choice.slices,
    }


@cache
def quantized_choice(kind, M, N, K):
    """Of quantized operands: int32 sums leave room for tiles of up to three warpgroups, or of 256 tokens.

    Of many tokens the tiles that take the least time by the waves that they come in: a canvas of 384 tokens fills
    other tiles than one of 512.
    """
    if M <= 64:
        return nibble_choice(M, N, K) if kind.w_bits == 4 else byte_choice(M, N)
    choices = []
    for wave in NIBBLE_WAVES if kind.w_bits == 4 else BYTE_WAVES:
        tiles = triton.cdiv(N, wave.block_n) * triton.cdiv(M, wave.block_m)
        most = 1 if token_boxes(wave.block_m)[1] else min(MOST_SPLIT, K // (BLOCK_CHANNELS * wave.blocks))
        for split in (1, max(1, min(MULTIPROCESSORS // tiles, most))):
            waves = triton.cdiv(tiles * split, MULTIPROCESSORS)
            adding = SUMMING + PARTIAL_SUMS * split * wave.block_n * wave.block_m if split > 1 else 0.0
            choices.append((waves * wave.microseconds * K / (4096 * split) + adding, wave, split))
    _, best, split = min(choices)
    return HopperChoice(best.block_n, best.block_m, best.blocks, split, stages=4)


def nibble_choice(M, N, K):
    """Of 4-bit weights and few tokens: unpacking takes longer than multiplying, and all warpgroups are to unpack."""
    narrow, wide, widest = (triton.cdiv(N, channels) for channels in (64, 128, 192))
    block_m = token_tile(M)
    blocks = 4 if block_m == 16 else 2  # stages of 16 KB or more
    if widest > NEARLY_A_WAVE:  # three warpgroups on each multiprocessor without split-K
        return HopperChoice(192, block_m, blocks)
    if MULTIPROCESSORS // 3 < narrow <= MULTIPROCESSORS and K <= SHORT_K:  # a wave; a second slice unpacks too
        return HopperChoice(64, block_m, blocks, slices=2)
    if block_m < 64:  # partial sums are small
        return HopperChoice(128, block_m, 4, split=SPLIT_WAVE // wide)
    if wide > MULTIPROCESSORS // 2:  # more than half a wave: split-K would make a second, short one
        return HopperChoice(128, 64, 2, stages=5)
    return HopperChoice(64, 64, 2, split=SPLIT_WAVE // (2 * wide), stages=8)


def byte_choice(M, N):
    """Of 8-bit weights and few tokens: bound by loading them, which split-K spreads over all multiprocessors."""
    split = SPLIT_WAVE // triton.cdiv(N, 128)
    if M <= 32:
        return HopperChoice(128, token_tile(M), 2, split, stages=5)
    return HopperChoice(128, 64, 1, split)


def weight_only_choice(kind, M, N):
    """Of bfloat16 X: two sums in float32, of a group and of all, leave registers for no more than 128 x 128."""
    narrow, planes = triton.cdiv(N, 64), kind.w_bits < 4
    blocks = 2 if planes else 1  # a plane's box is 32 bytes wide or more
    if M <= (32 if planes else 64):  # several CTAs hide the decoding of one another; a third where tiles fill it
        ctas = 3 if narrow > 2 * MULTIPROCESSORS else 2
        block_m = token_tile(M)
        together = 4 if planes and block_m == 16 else 2 if block_m < 64 else 1  # blocks under way: of few sums more
        most = 4 if block_m == 64 else MOST_STAGES
        return HopperChoice(64, block_m, together, MULTIPROCESSORS * ctas // narrow, ctas, stages=most)
    if M <= 64:  # whose sums take the registers of one CTA
        return HopperChoice(64, 64, 2, split=MULTIPROCESSORS // narrow, slices=2)
    if M <= 256 and narrow * triton.cdiv(M, 128) <= THREE_WAVES:
        return HopperChoice(64, 128, blocks, slices=1 if planes else 2)
    return HopperChoice(128, 128, blocks, stages=4)


def staged_bytes(choice, floating):
    """Of a channel of Y on its way: a box of up to 128 bytes, or two (`staging_buffers`)."""
    double = choice.block_m > 64 and choice.block_n < 256 and not floating
    return 256 if double else min(128, 4 * choice.block_m)


def stages_in_shared(kind, choice):
    """Stages that shared memory holds beside Y on its way and the sums of slices; weights of 2 bits count as 3."""
    floating = kind.a_bits == 16
    row = BLOCK_CHANNELS // 8 * max(kind.w_bits, 3) + (
        2 if floating and kind.w_group else 0
    )  # bytes of a channel's block
    stage = choice.blocks * (choice.block_n * row + choice.block_m * BLOCK_CHANNELS * (2 if floating else 1))
    sent = choice.block_n * (staged_bytes(choice, floating) + 4 * choice.block_m * (choice.slices - 1))
    return (SHARED_BYTES // choice.ctas - CTA_BYTES - sent) // stage


def hopper_registers(options):
    """Of a thread, so that CTAS_PER_SM of them fit on a multiprocessor; the load partition counts as four warps."""
    threads = 128 * (options["BLOCK_N"] // 64 * options["K_SLICES"] + 1)
    return min(REGISTERS // (options["CTAS_PER_SM"] * threads) // 8 * 8, MOST_REGISTERS)


def expert_tiles(rows) -> PortableTiles:
    """Of a portable grouped GEMM whose tiles have so many rows of X."""
    return {"BLOCK_N": 64, "BLOCK_M": rows, "num_warps": 4, "num_stages": 3}


def hopper_expert_tiles(kind, rows, columns, K) -> HopperTiles:
    """Of a grouped GEMM on 9.0. kind: `HopperFormat`; rows: of X in a tile; columns: of W that an expert has."""
    few = rows <= 32
    if kind.a_bits == 16:  # many sums in float32 leave no registers for a fourth warpgroup
        widths, ctas = ((64,), 3) if few else ((128, 64), 1)
    else:
        narrow = ((128, 64), 2) if kind.w_bits == 4 else ((64,), 4)  # bytes are bound by loading them
        widths, ctas = narrow if few else ((256, 128, 64), 1)
    block_n = next(width for width in widths if columns % width == 0)
    whole = kind.w_bits == 4 and K % 512 == 0 and rows * ctas <= 64
    blocks = (4 if whole else 2) if few or kind.w_bits < 4 else 1
    choice = HopperChoice(block_n, rows, blocks, ctas=ctas)
    return {
        "BLOCK_N": block_n,
        "BLOCK_M": rows,
        "K_BLOCKS": blocks,
        "STAGES": min(choice.stages, stages_in_shared(kind, choice)),
        "SPLIT": 1,
        "CTAS_PER_SM": choice.ctas,
        "K_SLICES": 1,
    }


def cublas_takes(x, out):
    """Whether cuBLAS can take a weight-only GEMM: x and Y have one dtype, of 16 bits."""
    return x.dtype == out.dtype and x.element_size() == 2


def cublas_wins(x, least):
    """Whether it does so without options: on Hopper, where it was measured, from so many tokens on."""
    measured = x.is_cuda and torch.cuda.get_device_capability(x.device)[0] == 9
    return measured and x.shape[0] >= least


def cublas_takes_fp8(activations, out):
    """Whether cuBLAS can take an e4m3 GEMM: Y in bfloat16, N and K in whole 16 bytes."""
    fits = activations.shape[1] % 16 == 0 and out.shape[1] % 16 == 0
    return fits and out.dtype == torch.bfloat16 and capability_of(activations) >= 89
