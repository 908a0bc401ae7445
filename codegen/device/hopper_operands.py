"""What the kernel for compute capability 9.0 multiplies, Y [M, N] = X W^T, as groups of arguments."""

from typing import NamedTuple

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from .hopper_shared import allocate_barriers, allocate_boxes, init_barrier_pairs

WARPGROUP_WARPS = gl.constexpr(4)
WARPGROUP_ROWS = gl.constexpr(64)  # output channels of a warpgroup: rows of its instruction


class HopperActivations(NamedTuple):
    """X [M, K]: data, a descriptor; scale: pointer float32 [M] of a token's codes, None of floats.

    rest: of tiles of 192 tokens, which come in boxes of 128 and 64, a descriptor of the latter, else None.
    """

    data: gl.tensor
    rest: gl.tensor
    scale: gl.tensor


class HopperWeights(NamedTuple):
    """W [N, K] as it is stored (`qspec.kernels.packing`).

    codes: descriptor of the codes, of three bits of their plane of two; low_codes: of the plane of one, else None.
    group_scale: descriptor float16 [K/GROUP, N], or None and scale: pointer float32 [N]. zero: pointer of nibbles
    [groups, ceil(N/2)], None if symmetric. BITS of a code. GROUP: channels that share a scale, 0 for the whole row.
    LIFT: times which the tensor cores get a code.
    """

    codes: gl.tensor
    low_codes: gl.tensor
    group_scale: gl.tensor
    scale: gl.tensor
    zero: gl.tensor
    BITS: gl.constexpr
    GROUP: gl.constexpr
    LIFT: gl.constexpr


class HopperOutput(NamedTuple):
    """Y [M, N]: data, a descriptor.

    bias: pointer float32 [N] or None. residual: pointer [M, N] in the dtype of Y, or None: added to Y. ACTIVATION: f
    where N counts gate and up, 8 of each in turn, and Y [M, N/2] is f(gate) up (`activate`), else "none".
    """

    data: gl.tensor
    bias: gl.tensor
    residual: gl.tensor
    ACTIVATION: gl.constexpr


class SplitK(NamedTuple):
    """Where units that share the channels of a tile meet.

    partials: pointer to their sums, [SPLIT, tiles, warpgroups, 64, BLOCK_M]. counters: pointer int32 [tiles,
    warpgroups], how many units have written theirs; 0 again after each launch.
    """

    partials: gl.tensor
    counters: gl.tensor


class HopperGemm(NamedTuple):
    """A GEMM: operands, M, N and K, the units of work that programs take in turn, and the sizes of its tiles.

    tiles: None, or of a grouped GEMM pointer int32 [1 + 2 tiles]: how many tiles of BLOCK_M rows of X there are, and of
    each its expert and how many of its rows are of a pair. columns: channels of Y, or of W that one expert has.

    A tile has BLOCK_N output channels and BLOCK_M tokens. A stage has BLOCKS blocks of 128 input channels, and STAGES
    of them are in flight. SPLIT units share the K range of a tile, K_SLICES sets of warpgroups the stages of a unit.

    Constants come last: only then does Triton 3.6 hand a further partition those of the groups before them.
    """

    x: gl.tensor
    w: gl.tensor
    out: gl.tensor
    split: gl.tensor
    M: gl.tensor
    N: gl.tensor
    K: gl.tensor
    units: gl.tensor
    tiles: gl.tensor
    columns: gl.tensor
    BLOCK_N: gl.constexpr
    BLOCK_M: gl.constexpr
    BLOCKS: gl.constexpr
    STAGES: gl.constexpr
    SPLIT: gl.constexpr
    K_SLICES: gl.constexpr


class SharedBuffers(NamedTuple):
    """Shared memory of a program.

    x and x_rest [STAGES], w and low_codes [STAGES, warpgroups], group_scale [STAGES, BLOCKS]: boxes of the stages in
    flight, which the barriers `full` [STAGES] hand to the MMA partitions and `empty` [STAGES] back. staging
    [warpgroups, buffers]: boxes of Y on their way. slice_sums, slice_full, slice_empty [K_SLICES - 1, warpgroups]: sums
    of all K slices but the first, and the barriers that hand them over and back.
    """

    x: gl.tensor
    x_rest: gl.tensor
    w: gl.tensor
    low_codes: gl.tensor
    group_scale: gl.tensor
    full: gl.tensor
    empty: gl.tensor
    slice_sums: gl.tensor
    slice_full: gl.tensor
    slice_empty: gl.tensor
    staging: gl.tensor


@gluon.constexpr_function
def sum_dtype(dtype):
    """Of the tensor cores' sums of operands in `dtype`: int32 of int8, float32 of floats."""
    return gl.int32 if dtype == gl.int8 else gl.float32


@gluon.constexpr_function
def staging_buffers(channels, tokens, operand_bits):
    """Boxes of Y of a warpgroup on their way at once. Sums of many tokens leave by several, and two overlap.

    Where decoding takes most of the time, or four warpgroups take most of the memory, stages are worth more.
    """
    return 2 if tokens > 64 and channels < 256 and operand_bits == 8 else 1


@gluon.jit
def allocate_shared(g):
    """`SharedBuffers` of a program, its barriers ready.

    In the place of what the GEMM does not need stands another buffer: Triton 3.6 returns no None in a tuple.
    """
    WARPGROUPS: gl.constexpr = g.BLOCK_N // WARPGROUP_ROWS
    w = allocate_boxes(g.w.codes, g.STAGES * WARPGROUPS)
    low_codes = w
    if g.w.low_codes is not None:
        low_codes = allocate_boxes(g.w.low_codes, g.STAGES * WARPGROUPS)
    x = allocate_boxes(g.x.data, g.STAGES)
    x_rest = x
    if g.x.rest is not None:
        x_rest = allocate_boxes(g.x.rest, g.STAGES)
    group_scale = w
    if g.w.group_scale is not None:
        group_scale = allocate_boxes(g.w.group_scale, g.STAGES * g.BLOCKS)
    BUFFERS: gl.constexpr = staging_buffers(g.BLOCK_N, g.BLOCK_M, g.x.data.dtype.primitive_bitwidth)
    staging = allocate_boxes(g.out.data, WARPGROUPS * BUFFERS)
    full, empty = allocate_barriers(g.STAGES), allocate_barriers(g.STAGES)
    init_barrier_pairs(full, empty, g.STAGES, WARPGROUPS)
    slice_sums, slice_full, slice_empty = staging, full, full
    if g.K_SLICES > 1:
        HANDED: gl.constexpr = (g.K_SLICES - 1) * WARPGROUPS
        dtype: gl.constexpr = sum_dtype(g.x.data.dtype)
        layout: gl.constexpr = gl.NVMMASharedLayout.get_default_for([WARPGROUP_ROWS, g.BLOCK_M], dtype)
        slice_sums = gl.allocate_shared_memory(dtype, [HANDED, WARPGROUP_ROWS, g.BLOCK_M], layout)
        slice_full, slice_empty = allocate_barriers(HANDED), allocate_barriers(HANDED)
        init_barrier_pairs(slice_full, slice_empty, HANDED, 1)
    stages = x, x_rest, w, low_codes, group_scale, full, empty
    return SharedBuffers(*stages, slice_sums, slice_full, slice_empty, staging)
