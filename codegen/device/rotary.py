"""Rotary positions (arXiv 2104.09864) of queries and keys, the first half of a head paired with its second."""

from typing import NamedTuple

import triton
import triton.language as tl

from .overlap import overlap_launches


class MovedHeads(NamedTuple):
    """Floats [sequences, heads, tokens, WIDTH] and where they go, alike: pointers, and strides of the first three axes.

    Channels lie close.
    """

    data: tl.tensor
    batch_stride: tl.tensor
    head_stride: tl.tensor
    token_stride: tl.tensor
    out: tl.tensor
    out_batch_stride: tl.tensor
    out_head_stride: tl.tensor
    out_token_stride: tl.tensor


class RotaryTables(NamedTuple):
    """cos and sin of each token's angles: pointers float32 [sequences, tokens, WIDTH], whose halves are equal.

    batch_stride: between sequences, 0 where all share one table.
    """

    cos: tl.tensor
    sin: tl.tensor
    batch_stride: tl.tensor


class RotarySizes(NamedTuple):
    """HEADS of queries, GROUPS of keys and values; WIDTH: channels of a head; BLOCK: heads that a program takes."""

    HEADS: tl.constexpr
    GROUPS: tl.constexpr
    WIDTH: tl.constexpr
    BLOCK: tl.constexpr


@triton.jit
def rotate_and_keep(q, k, v, tables, places, sizes, PDL: tl.constexpr):
    """Queries and keys in rotary positions; keys, and values as they are, go to the places of their tokens.

    q, k, v: `MovedHeads`. places: pointer int64 [tokens], where in `out` of k and v each token goes; None: where it is
    in `data`. A program takes BLOCK heads of q, then of k, then of v (axis 2) of one token (axis 0) of a sequence
    (axis 1); without programs for v these stay where they are.
    """
    token = tl.program_id(0)
    part = tl.program_id(2)
    overlap_launches(PDL)
    place = token
    if places is not None:
        place = tl.load(places + token)
    q_parts: tl.constexpr = (sizes.HEADS + sizes.BLOCK - 1) // sizes.BLOCK
    k_parts: tl.constexpr = (sizes.GROUPS + sizes.BLOCK - 1) // sizes.BLOCK
    if part < q_parts:
        rotate_heads(q, tables, token, part, sizes.HEADS, sizes)
    elif part < q_parts + k_parts:
        rotate_heads(k, tables, place, part - q_parts, sizes.GROUPS, sizes)
    else:
        keep_heads(v, place, part - q_parts - k_parts, sizes)


@triton.jit
def rotate_heads(x, tables, place, part, HEADS: tl.constexpr, sizes):
    """(y1, y2) = (x1 cos - x2 sin, x2 cos + x1 sin) of the halves of each head, in float32.

    Products and sums are not fused: the bits are those of separate operations.
    """
    token = tl.program_id(0)
    batch = tl.program_id(1).to(tl.int64)
    head = part * sizes.BLOCK + tl.arange(0, sizes.BLOCK)[:, None]
    channel = tl.arange(0, sizes.WIDTH // 2)[None, :]
    mask = head < HEADS
    angles = batch * tables.batch_stride + token * sizes.WIDTH + channel
    cos = tl.load(tables.cos + angles)
    sin = tl.load(tables.sin + angles)
    source = x.data + batch * x.batch_stride + head * x.head_stride + token * x.token_stride + channel
    target = x.out + batch * x.out_batch_stride + head * x.out_head_stride + place * x.out_token_stride + channel
    first = tl.load(source, mask=mask, other=0.0).to(tl.float32)
    second = tl.load(source + sizes.WIDTH // 2, mask=mask, other=0.0).to(tl.float32)
    dtype = x.out.dtype.element_ty
    tl.store(target, (first * cos - second * sin).to(dtype), mask=mask)
    tl.store(target + sizes.WIDTH // 2, (second * cos + first * sin).to(dtype), mask=mask)


@triton.jit
def keep_heads(x, place, part, sizes):
    """The heads as they are."""
    token = tl.program_id(0)
    batch = tl.program_id(1).to(tl.int64)
    head = part * sizes.BLOCK + tl.arange(0, sizes.BLOCK)[:, None]
    channel = tl.arange(0, sizes.WIDTH)[None, :]
    mask = head < sizes.GROUPS
    source = x.data + batch * x.batch_stride + head * x.head_stride + token * x.token_stride + channel
    target = x.out + batch * x.out_batch_stride + head * x.out_head_stride + place * x.out_token_stride + channel
    tl.store(target, tl.load(source, mask=mask, other=0.0), mask=mask)
