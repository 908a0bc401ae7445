"""The GEMM of two operands in one float format: the tensor cores' own form, or decoded, in plain Triton."""

import triton
import triton.language as tl

from .epilogue import store_tile
from .operands import own_tile
from .unpack import from_e2m1, from_e4m3, from_e8m0


@triton.jit
def gemm_fp8(g, out, M, N, NATIVE: tl.constexpr):
    """Y = X W^T of e4m3 patterns int8: y[m, n] = sA[m] sW[n] sum over k of qA qW, plus bias.

    NATIVE, from compute capability 8.9 on: the tensor cores take the codes. Elsewhere they become float16, exactly.
    """
    tile = own_tile(g, M, N)
    y = tl.full((g.blocks.BLOCK_N, g.blocks.BLOCK_M), 0.0, tl.float32)
    for start in range(0, g.blocks.K, g.blocks.PIECE):
        channel = start + tl.arange(0, g.blocks.PIECE)
        inside = channel < g.blocks.K
        codes = tl.load(tile.w_rows + channel[None, :], mask=tile.n_inside[:, None] & inside[None, :], other=0)
        values = tl.load(tile.x_rows + channel[:, None], mask=inside[:, None] & tile.m_inside[None, :], other=0)
        if NATIVE:
            y = tl.dot(codes.to(tl.float8e4nv, bitcast=True), values.to(tl.float8e4nv, bitcast=True), y)
        else:
            y = tl.dot(from_e4m3(codes).to(tl.float16), from_e4m3(values).to(tl.float16), y)
    y = y * tl.load(g.x.scale + tile.m, mask=tile.m_inside, other=0.0)[None, :]
    y = y * tl.load(g.w.scale + tile.n, mask=tile.n_inside, other=0.0)[:, None]
    store_tile(y, out, tile)


@triton.jit
def gemm_fp4(g, out, M, N, NATIVE: tl.constexpr, OPERAND: tl.constexpr):
    """Y = X W^T of pairs of e2m1 patterns: y[m, n] = uA[m] uW[n] sum over k of (qA sA)(qW sW), plus bias.

    NATIVE, from compute capability 10.0 on: the tensor cores take codes and scales as they are. Elsewhere both are
    multiplied first, which is exact in bfloat16, and the products are those of OPERAND.
    """
    tile = own_tile(g, M, N)
    y = tl.full((g.blocks.BLOCK_N, g.blocks.BLOCK_M), 0.0, tl.float32)
    for start in range(0, g.blocks.K, g.blocks.PIECE):
        byte = start // 2 + tl.arange(0, g.blocks.PIECE // 2)
        inside = byte < g.blocks.K // 2
        codes = tl.load(tile.w_rows + byte[None, :], mask=tile.n_inside[:, None] & inside[None, :], other=0)
        values = tl.load(tile.x_rows + byte[:, None], mask=inside[:, None] & tile.m_inside[None, :], other=0)
        if NATIVE:
            block = (start // g.w.GROUP + tl.arange(0, g.blocks.PIECE // g.w.GROUP))[None, :]
            real = block < g.blocks.K // g.w.GROUP
            n_inside, m_inside = tile.n_inside[:, None] & real, tile.m_inside[:, None] & real
            sw = tl.load(g.w.scale + block * N + tile.n[:, None], mask=n_inside, other=0)
            sa = tl.load(g.x.scale + block * M + tile.m[:, None], mask=m_inside, other=0)
            if g.w.NUMBER == "nvfp4":
                sw = sw.to(tl.float8e4nv, bitcast=True)
                sa = sa.to(tl.float8e4nv, bitcast=True)
            y = tl.dot_scaled(codes, sw, "e2m1", values, sa, "e2m1", y)
        else:
            block = byte // (g.w.GROUP // 2)
            sw = g.w.scale + block[None, :] * N + tile.n[:, None]
            sw = block_scale(tl.load(sw, mask=tile.n_inside[:, None] & inside[None, :], other=0), g.w.NUMBER)
            sa = g.x.scale + block[:, None] * M + tile.m[None, :]
            sa = block_scale(tl.load(sa, mask=inside[:, None] & tile.m_inside[None, :], other=0), g.w.NUMBER)
            w_low = (from_e2m1(codes << 4) * sw).to(OPERAND)
            x_low = (from_e2m1(values << 4) * sa).to(OPERAND)
            y = tl.dot(w_low, x_low, y, input_precision="ieee")
            w_high = (from_e2m1(codes) * sw).to(OPERAND)
            x_high = (from_e2m1(values) * sa).to(OPERAND)
            y = tl.dot(w_high, x_high, y, input_precision="ieee")
    if g.w.unit is not None:
        y = y * tl.load(g.x.unit + tile.m, mask=tile.m_inside, other=0.0)[None, :]
        y = y * tl.load(g.w.unit + tile.n, mask=tile.n_inside, other=0.0)[:, None]
    store_tile(y, out, tile)


@triton.jit
def block_scale(pattern, NUMBER: tl.constexpr):
    """float32 of a block's stored scale: e4m3 of nvfp4, e8m0 of mxfp4."""
    if NUMBER == "nvfp4":
        return from_e4m3(pattern)
    else:
        return from_e8m0(pattern)
