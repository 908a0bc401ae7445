"""The operands of a GEMM Y [M, N] = X W^T, as groups of arguments."""

from typing import NamedTuple

import triton
import triton.language as tl


class Weights(NamedTuple):
    """W [N, K] as it is stored, and how.

    codes: pointer; the layout is in `qspec.kernels.packing`. scale: pointer [groups, N]. zero: pointer
    [groups, N] or packed nibbles, None if symmetric. unit: pointer float32 [N], of nvfp4. NUMBER: "int" or a float
    format. BITS of a code. GROUP: channels that share a scale, 0 for the whole row. PACK: channels whose codes are
    packed together. INTERLEAVED: whether codes lie in the order of bfloat16 tensor-core operands.
    """

    codes: tl.tensor
    scale: tl.tensor
    zero: tl.tensor
    unit: tl.tensor
    NUMBER: tl.constexpr
    BITS: tl.constexpr
    GROUP: tl.constexpr
    PACK: tl.constexpr
    INTERLEAVED: tl.constexpr


class Activations(NamedTuple):
    """X [M, K]: codes or floats, pointer.

    scale, zero: pointers [groups, M], None where there are none. unit: pointer float32 [M], of nvfp4. GROUP: channels
    that share a scale, 0 for the whole row. PAIRS: whether two channels share an element of `data`.
    """

    data: tl.tensor
    scale: tl.tensor
    zero: tl.tensor
    unit: tl.tensor
    GROUP: tl.constexpr
    PAIRS: tl.constexpr


class Output(NamedTuple):
    """Y [M, N]: pointer, any float dtype.

    bias: pointer float32 [N] or None. residual: pointer [M, N] in the dtype of Y, or None: added to Y. ACTIVATION: f
    where N counts gate and up, 8 of each in turn, and Y [M, N/2] is f(gate) up (`activate`), else "none".
    """

    data: tl.tensor
    bias: tl.tensor
    residual: tl.tensor
    ACTIVATION: tl.constexpr


class Blocks(NamedTuple):
    """Sizes of a GEMM.

    K channels, in steps of STEP, each a partial sum with scales of its own (0: all K are one), and pieces of PIECE, one
    product on the tensor cores each; a tile of BLOCK_N output channels and BLOCK_M tokens.

    Constants travel as arguments: Triton makes tensors of those in a tuple that is assigned to a name.
    """

    K: tl.constexpr
    STEP: tl.constexpr
    PIECE: tl.constexpr
    BLOCK_N: tl.constexpr
    BLOCK_M: tl.constexpr


class Experts(NamedTuple):
    """W of a grouped GEMM: the channels of one expert behind those of another, `channels` each.

    tiles: pointer int32 [1 + 2 tiles of BLOCK_M rows of X]: how many of them there are, and of each its expert and how
    many of its rows are of a pair.
    """

    tiles: tl.tensor
    channels: tl.tensor


class Gemm(NamedTuple):
    """What a GEMM multiplies, and in which sizes. experts: `Experts`, or None of one W for all rows of X."""

    x: tl.tensor
    w: tl.tensor
    blocks: tl.tensor
    experts: tl.tensor


class Tile(NamedTuple):
    """The tile of Y^T that a program computes.

    n [BLOCK_N], m [BLOCK_M]: its rows of W and of X; n_inside, m_inside: which of them exist. w_rows [BLOCK_N, 1],
    x_rows [1, BLOCK_M]: pointers to them. M, N: rows of X and W. column [BLOCK_N]: where Y has the channels n, of
    `columns`; those of W, or of a tile's expert.
    """

    n: tl.tensor
    m: tl.tensor
    n_inside: tl.tensor
    m_inside: tl.tensor
    w_rows: tl.tensor
    x_rows: tl.tensor
    M: tl.tensor
    N: tl.tensor
    column: tl.tensor
    columns: tl.tensor


@triton.jit
def weight_rows(w, n, K: tl.constexpr):
    """Pointers [n, 1] to rows of W, int64 offsets."""
    if w.BITS == 4:
        return w.codes + n[:, None].to(tl.int64) * (K // 2)
    elif w.BITS < 8:
        return w.codes + n[:, None].to(tl.int64) * (K // 8 * w.BITS)
    else:
        return w.codes + n[:, None].to(tl.int64) * K


@triton.jit
def own_tile(g, M, N):
    """The tile of this program: axis 0 of the grid counts blocks of channels, axis 1 of tokens."""
    column = tl.program_id(0) * g.blocks.BLOCK_N + tl.arange(0, g.blocks.BLOCK_N)
    m = tl.program_id(1) * g.blocks.BLOCK_M + tl.arange(0, g.blocks.BLOCK_M)
    n, columns = channels_of_tile(g, column, N)
    n_inside = column < columns
    m_inside = m < M
    w_rows = weight_rows(g.w, n, g.blocks.K)
    x_rows = g.x.data + m[None, :].to(tl.int64) * (g.blocks.K // 2 if g.x.PAIRS else g.blocks.K)
    return Tile(n, m, n_inside, m_inside, w_rows, x_rows, M, N, column, columns)


@triton.jit
def channels_of_tile(g, column, N):
    """Rows of W that give the channels `column` of Y, and how many channels Y has."""
    if g.experts is None:
        return column, N
    else:
        expert = tl.load(g.experts.tiles + 1 + 2 * tl.program_id(1))
        return expert * g.experts.channels + column, g.experts.channels


@triton.jit
def group_row(step, STEP: tl.constexpr, GROUP: tl.constexpr, length):
    """Where the row of a step's group starts in an array [groups, length]; 0 where a row of W or X has one scale."""
    if GROUP == 0:
        return 0
    elif GROUP == STEP:
        return step * length
    else:
        return step // (GROUP // STEP) * length
