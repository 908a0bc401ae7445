"""Rotary positions (arXiv 2104.09864) of queries or keys, the first half of a head paired with its second."""

from typing import NamedTuple

import triton
import triton.language as tl

from .attention import head_start
from .overlap import overlap_launches


class RotaryTables(NamedTuple):
    """cos and sin of each token's angles: pointers float32 [sequences, tokens, WIDTH], whose halves are equal.

    batch_stride: between sequences, 0 where all share one table.
    """

    cos: tl.tensor
    sin: tl.tensor
    batch_stride: tl.tensor


@triton.jit
def rotate_heads(x, tables, out, HEADS: tl.constexpr, BLOCK: tl.constexpr, WIDTH: tl.constexpr, PDL: tl.constexpr):
    """(y1, y2) = (x1 cos - x2 sin, x2 cos + x1 sin) of the halves of each head, in float32.

    x, out: `HeadRows` [batch, HEADS, tokens, WIDTH]. A program takes BLOCK heads (axis 2) of one token (axis 0) of a
    sequence (axis 1). Products and sums are not fused: the bits are those of separate operations.
    """
    token = tl.program_id(0)
    batch = tl.program_id(1)
    head = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
    channel = tl.arange(0, WIDTH // 2)
    mask = (head < HEADS)[:, None]
    overlap_launches(PDL)
    angles = batch.to(tl.int64) * tables.batch_stride + token * WIDTH + channel
    cos = tl.load(tables.cos + angles)[None, :]
    sin = tl.load(tables.sin + angles)[None, :]
    source = head_start(x, batch, head)[:, None] + token * x.token_stride + channel[None, :]
    target = head_start(out, batch, head)[:, None] + token * out.token_stride + channel[None, :]
    first = tl.load(source, mask=mask, other=0.0).to(tl.float32)
    second = tl.load(source + WIDTH // 2, mask=mask, other=0.0).to(tl.float32)
    dtype = out.data.dtype.element_ty
    tl.store(target, (first * cos - second * sin).to(dtype), mask=mask)
    tl.store(target + WIDTH // 2, (second * cos + first * sin).to(dtype), mask=mask)
