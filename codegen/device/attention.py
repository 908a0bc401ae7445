"""Attention of few queries: an online softmax (FlashAttention-2, arXiv 2307.08691), its keys split among programs."""

from typing import NamedTuple

import triton
import triton.language as tl

from .overlap import overlap_launches

LOWEST_SCORE = tl.constexpr(-1.0e30)  # below any score, and finite: a program without real tokens weighs 0


class HeadRows(NamedTuple):
    """16-bit floats [batch, heads, tokens, WIDTH]: pointer, and strides of the first three axes; channels lie close."""

    data: tl.tensor
    batch_stride: tl.tensor
    head_stride: tl.tensor
    token_stride: tl.tensor


class Partials(NamedTuple):
    """What the programs that split a head's keys write down, pointers.

    sums: float32 [pairs, SPLIT, ROWS x WIDTH], in an order of the kernel's. maxima, denominators: float32 [pairs,
    SPLIT, ROWS]. arrived: int32 [pairs], how many programs have written theirs; 0 before and after a launch. pairs:
    batch x heads.
    """

    sums: tl.tensor
    maxima: tl.tensor
    denominators: tl.tensor
    arrived: tl.tensor


class AttentionSizes(NamedTuple):
    """What is attended to what, and what a program takes.

    n queries, T tokens of keys; factor: of scores, for exponents of 2. HEADS of queries, of which SHARED share a head
    of keys; WIDTH: channels of a head; ROWS >= n; BLOCK: tokens at a time; SPLIT: programs for the keys of a head.
    """

    n: tl.tensor
    T: tl.tensor
    factor: tl.tensor
    HEADS: tl.constexpr
    SHARED: tl.constexpr
    WIDTH: tl.constexpr
    ROWS: tl.constexpr
    BLOCK: tl.constexpr
    SPLIT: tl.constexpr


class Softmax(NamedTuple):
    """An online softmax over some tokens t, of scores s [ROWS, t] that are exponents of 2.

    sums [ROWS, WIDTH], on 9.0 transposed: sum over t of 2^(s - m) v[t]. denominator [ROWS]: sum over t of 2^(s - m).
    maximum m [ROWS].
    """

    sums: tl.tensor
    denominator: tl.tensor
    maximum: tl.tensor


@triton.jit
def attend_few_queries(q, k, v, mask, out, partials, sizes, PDL: tl.constexpr):
    """y[b, h, i] = sum over t of p[i, t] v[t] / sum over t of p[i, t], where p[i, t] = 2^(factor q[i] . k[t]).

    q, k, v: `HeadRows`. mask: pointer uint8 [batch, T] of the tokens t that count, or None. out: pointer
    [batch, n, HEADS, WIDTH]. A program takes one of SPLIT parts of the tokens (axis 0) for one head of a sequence
    (axis 1); the last of a head's programs to come merges what all have written down.
    """
    part = tl.program_id(0)
    pair = tl.program_id(1)
    batch = pair // sizes.HEADS
    head = pair % sizes.HEADS
    row = tl.arange(0, sizes.ROWS)
    channel = tl.arange(0, sizes.WIDTH)
    inside = row < sizes.n
    overlap_launches(PDL)
    pointers = head_start(q, batch, head) + row[:, None] * q.token_stride + channel[None, :]
    queries = tl.load(pointers, mask=inside[:, None], other=0.0)
    k_start = head_start(k, batch, head // sizes.SHARED)
    v_start = head_start(v, batch, head // sizes.SHARED)
    blocks = tl.cdiv(sizes.T, sizes.BLOCK)
    softmax = no_tokens(sizes.ROWS, sizes.WIDTH)
    for block in range(part * blocks // sizes.SPLIT, (part + 1) * blocks // sizes.SPLIT):
        token = block * sizes.BLOCK + tl.arange(0, sizes.BLOCK)
        real = token < sizes.T
        keys = tl.load(k_start + token[None, :] * k.token_stride + channel[:, None], mask=real[None, :], other=0.0)
        values = tl.load(v_start + token[:, None] * v.token_stride + channel[None, :], mask=real[:, None], other=0.0)
        if mask is not None:
            real = tl.load(mask + batch.to(tl.int64) * sizes.T + token, mask=real, other=0) != 0
        scores = tl.where(real[None, :], tl.dot(queries, keys) * sizes.factor, float("-inf"))
        softmax = add_tokens(softmax, scores, values)
    last = True
    if sizes.SPLIT > 1:
        store_partial(partials, softmax, (pair * sizes.SPLIT + part) * sizes.ROWS + row, channel)
        tl.debug_barrier()
        last = tl.atomic_add(partials.arrived + pair, 1, sem="acq_rel") == sizes.SPLIT - 1
        if last:
            tl.store(partials.arrived + pair, 0)
            softmax = no_tokens(sizes.ROWS, sizes.WIDTH)
            for other in tl.static_range(sizes.SPLIT):
                cell = (pair * sizes.SPLIT + other) * sizes.ROWS + row
                softmax = merge(softmax, load_partial(partials, cell, channel))
    if last:
        start = (batch.to(tl.int64) * sizes.n + row[:, None]) * sizes.HEADS + head
        pointers = out + start * sizes.WIDTH + channel[None, :]
        y = softmax.sums / softmax.denominator[:, None]
        tl.store(pointers, y.to(out.dtype.element_ty), mask=inside[:, None])


@triton.jit
def head_start(x, batch, head):
    """Pointer to the first row of a head; x: `HeadRows`."""
    return x.data + batch.to(tl.int64) * x.batch_stride + head * x.head_stride


@triton.jit
def no_tokens(ROWS: tl.constexpr, WIDTH: tl.constexpr):
    """The softmax over nothing."""
    sums = tl.full((ROWS, WIDTH), 0.0, tl.float32)
    denominator = tl.full((ROWS,), 0.0, tl.float32)
    return Softmax(sums, denominator, tl.full((ROWS,), LOWEST_SCORE, tl.float32))


@triton.jit
def add_tokens(softmax, scores, values):
    """The softmax over more tokens: scores [ROWS, t], -inf for those that do not count, and their values [t, WIDTH].

    2^(s - m) is rounded to the 16 bits of `values` before it multiplies them.
    """
    maximum = tl.maximum(softmax.maximum, tl.max(scores, axis=1))
    weights = tl.exp2(scores - maximum[:, None])
    shrink = tl.exp2(softmax.maximum - maximum)
    denominator = softmax.denominator * shrink + tl.sum(weights, axis=1)
    sums = tl.dot(weights.to(values.dtype), values, softmax.sums * shrink[:, None])
    return Softmax(sums, denominator, maximum)


@triton.jit
def merge(one, other):
    """The softmax over the tokens of both."""
    maximum = tl.maximum(one.maximum, other.maximum)
    shrink = tl.exp2(one.maximum - maximum)
    other_shrink = tl.exp2(other.maximum - maximum)
    sums = one.sums * shrink[:, None] + other.sums * other_shrink[:, None]
    return Softmax(sums, one.denominator * shrink + other.denominator * other_shrink, maximum)


@triton.jit
def store_partial(partials, softmax, cell, channel):
    """Writes down the softmax of one part; cell [ROWS]: where its rows are."""
    tl.store(partials.sums + cell[:, None] * channel.shape[0] + channel[None, :], softmax.sums)
    tl.store(partials.denominators + cell, softmax.denominator)
    tl.store(partials.maxima + cell, softmax.maximum)


@triton.jit
def load_partial(partials, cell, channel):
    """What `store_partial` wrote."""
    sums = tl.load(partials.sums + cell[:, None] * channel.shape[0] + channel[None, :])
    denominator = tl.load(partials.denominators + cell)
    return Softmax(sums, denominator, tl.load(partials.maxima + cell))
