"""The likeliest token of each row of logits and its confidence: an online softmax, split among programs."""

from typing import NamedTuple

import triton
import triton.language as tl

from .overlap import overlap_launches

LOWEST_LOGIT = tl.constexpr(-3.0e38)  # below any that counts, and finite: a program without such logits weighs 0
PART = tl.constexpr(8192)  # logits that a program takes: the order of sums is the same for every number of rows


class RatedParts(NamedTuple):
    """What the programs of a row write down, pointers [rows, PARTS] but for the last.

    maxima: float32, the largest logit m. places: int32, of the first that large; -1 where a logit is NaN or Inf.
    sums: float32, the sum of exp(l - m). extras: float32; see `rate_part`. arrived: int32 [rows], how many programs
    have written theirs; 0 before and after a launch.
    """

    maxima: tl.tensor
    places: tl.tensor
    sums: tl.tensor
    extras: tl.tensor
    arrived: tl.tensor


class Choices(NamedTuple):
    """Pointers: tokens int64 [rows], confidence float32 [rows]; finite uint8 [], to become 0 where a logit is not."""

    tokens: tl.tensor
    confidence: tl.tensor
    finite: tl.tensor


class RatedPart(NamedTuple):
    """Of one program's logits, or of several programs': what `RatedParts` has of it."""

    maximum: tl.tensor
    place: tl.tensor
    sum: tl.tensor
    extra: tl.tensor


@triton.jit
def choose_likeliest(logits, absent, parts, choices, row_stride, VOCAB: tl.constexpr, MEASURE: tl.constexpr, PDL):
    """x0 = argmax l, the first of equals, and its confidence, for each row; ids where `absent` has 1 are no tokens.

    A program takes one part of a row's logits (axis 0); the last of a row's programs (axis 1) to come merges them all.
    """
    part = tl.program_id(0)
    row = tl.program_id(1)
    PARTS: tl.constexpr = (VOCAB + PART - 1) // PART
    overlap_launches(PDL)
    rated = rate_part(logits + row.to(tl.int64) * row_stride, absent, part, VOCAB, MEASURE)
    cell = row * PARTS + part
    tl.store(parts.maxima + cell, rated.maximum)
    tl.store(parts.places + cell, rated.place)
    tl.store(parts.sums + cell, rated.sum)
    tl.store(parts.extras + cell, rated.extra)
    tl.debug_barrier()
    if tl.atomic_add(parts.arrived + row, 1, sem="acq_rel") == PARTS - 1:
        tl.store(parts.arrived + row, 0)
        merged = merge_parts(parts, row, PARTS, MEASURE)
        tl.store(choices.tokens + row, tl.maximum(merged.place, 0).to(tl.int64))
        tl.store(choices.confidence + row, confidence_of(merged, MEASURE))
        if merged.place < 0:
            tl.store(choices.finite, 0)


@triton.jit
def rate_part(logits, absent, part, VOCAB: tl.constexpr, MEASURE: tl.constexpr):
    """One part of a row. extra: the largest logit but one ("margin"), or the sum of exp(l - m) (l - m) ("entropy")."""
    token = part * PART + tl.arange(0, PART)
    there = token < VOCAB
    logit = tl.load(logits + token, mask=there, other=0.0).to(tl.float32)
    finite = tl.abs(logit) < float("inf")
    broken = tl.min(finite.to(tl.int32), axis=0) == 0
    there = there & finite
    if absent is not None:
        there = there & (tl.load(absent + token, mask=there, other=1) == 0)
    logit = tl.where(there, logit, float("-inf"))
    maximum = tl.maximum(tl.max(logit, axis=0), LOWEST_LOGIT)
    place = tl.min(tl.where(logit == maximum, token, VOCAB), axis=0)
    below = tl.where(there, logit - maximum, 0.0)
    weight = tl.where(there, tl.exp(below), 0.0)
    extra = maximum
    if MEASURE == "margin":
        extra = tl.maximum(tl.max(tl.where(token == place, float("-inf"), logit), axis=0), LOWEST_LOGIT)
    if MEASURE == "entropy":
        extra = tl.sum(weight * below, axis=0)
    return RatedPart(maximum, tl.where(broken, -1, place), tl.sum(weight, axis=0), extra)


@triton.jit
def merge_parts(parts, row, PARTS: tl.constexpr, MEASURE: tl.constexpr):
    """A whole row, of what its programs wrote."""
    part = tl.arange(0, triton.next_power_of_2(PARTS))
    inside = part < PARTS
    cell = row * PARTS + part
    maxima = tl.load(parts.maxima + cell, mask=inside, other=LOWEST_LOGIT)
    places = tl.load(parts.places + cell, mask=inside, other=0)
    sums = tl.load(parts.sums + cell, mask=inside, other=0.0)
    extras = tl.load(parts.extras + cell, mask=inside, other=0.0)
    maximum = tl.max(maxima, axis=0)
    first = tl.min(tl.where(maxima == maximum, part, PARTS), axis=0)  # the part that has the token
    place = tl.max(tl.where(part == first, places, -1), axis=0)
    place = tl.where(tl.min(places, axis=0) < 0, -1, place)
    below = maxima - maximum
    shrink = tl.exp(below)
    extra = maximum
    if MEASURE == "margin":
        extra = tl.max(tl.where(part == first, extras, maxima), axis=0)
    if MEASURE == "entropy":
        extra = tl.sum((extras + sums * below) * shrink, axis=0)
    return RatedPart(maximum, place, tl.sum(sums * shrink, axis=0), extra)


@triton.jit
def confidence_of(row, MEASURE: tl.constexpr):
    """p = 1 / sum, p less that of the next token, or sum over all tokens of p log p, of a whole row."""
    if MEASURE == "margin":
        return (1.0 - tl.exp(row.extra - row.maximum)) / row.sum
    if MEASURE == "entropy":
        return row.extra / row.sum - tl.log(row.sum)
    return 1.0 / row.sum


def likeliest_tiles():
    """Launch options, which fit PART."""
    return {"num_warps": 8}
