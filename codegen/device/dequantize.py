"""Weights in the dtype of 16-bit activations, written down for cuBLAS."""

import triton
import triton.language as tl

from .gates import multiply_gated
from .operands import Tile, weight_rows
from .scales import load_weight_scale, load_weight_zero
from .unpack import decode_codes, load_codes, load_interleaved_nibbles


@triton.jit
def dequantize(w, dense, N, K: tl.constexpr, STEP: tl.constexpr, SPAN: tl.constexpr, BLOCK_N: tl.constexpr):
    """W^ [N, K] = s (q - z), rounded once to the dtype of `dense`.

    A program writes SPAN channels of one step (axis 0) and BLOCK_N rows (axis 1). Nibbles come as words of 16 bits.
    """
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    tile = Tile(n, None, n < N, None, None, None, None, N, None, None)
    step, channel, k_inside = own_channels(K, STEP, SPAN)
    if STEP > 0 and STEP % SPAN == 0:
        inside = tile.n_inside[:, None]
    else:
        inside = tile.n_inside[:, None] & k_inside[None, :]
    if w.INTERLEAVED and w.BITS == 4:
        row = w.codes + n[:, None].to(tl.int64) * (K // 4)
        codes = load_interleaved_nibbles(row, channel, inside, w.PACK)
    else:
        codes = load_codes(weight_rows(w, n, K), channel, inside, K, w)
    values = decode_codes(codes, w.NUMBER)
    if w.zero is not None:
        values = values - load_weight_zero(w, tile, step, STEP)[:, None]
    scale = load_weight_scale(w, tile, step, STEP)
    if w.unit is not None:
        scale = scale * tl.load(w.unit + n, mask=tile.n_inside, other=0.0)
    place = dense + n[:, None].to(tl.int64) * K + channel[None, :]
    tl.store(place, (values * scale[:, None]).to(dense.dtype.element_ty), mask=inside)


@triton.jit
def own_channels(K: tl.constexpr, STEP: tl.constexpr, SPAN: tl.constexpr):
    """This program's step, its channels [SPAN], and which of them are the step's."""
    if STEP == 0:
        channel = tl.program_id(0) * SPAN + tl.arange(0, SPAN)
        return 0, channel, channel < K
    else:
        SPANS: tl.constexpr = (STEP + SPAN - 1) // SPAN
        if SPANS > 1:
            step = tl.program_id(0) // SPANS
            of_step = tl.program_id(0) % SPANS * SPAN + tl.arange(0, SPAN)
        else:
            step = tl.program_id(0)
            of_step = tl.arange(0, SPAN)
        return step, step * STEP + of_step, of_step < STEP


@triton.jit
def gate_columns(y, out, count, ACTIVATION: tl.constexpr, BLOCK: tl.constexpr):
    """f(gate) up of `count` values of Y, of which 8 of gate and 8 of up lie in turn in y."""
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    first = y + tl.max_contiguous(tl.multiple_of(place // 8 * 16 + place % 8, 8), 8)
    inside = place < count
    gate, up = tl.load(first, mask=inside), tl.load(first + 8, mask=inside)
    tl.store(out + place, multiply_gated(gate, up, ACTIVATION), mask=inside)
