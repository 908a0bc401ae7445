"""Which masks a denoising step commits, and committing them: each is ranked by counting those that are ahead of it."""

from typing import NamedTuple

import triton
import triton.language as tl

from .overlap import overlap_launches


class DecidedPlaces(NamedTuple):
    """ids: pointer int64 [rows, ...], rows `row_stride` apart, of which `places`, pointer int64 [size], are decided on.

    mask_token: the id of a mask.
    """

    ids: tl.tensor
    row_stride: tl.tensor
    places: tl.tensor
    size: tl.tensor
    mask_token: tl.tensor


class Offered(NamedTuple):
    """Pointers [rows, size]: tokens int64, and floats that say how sure each is."""

    tokens: tl.tensor
    confidence: tl.tensor


class CommitRule(NamedTuple):
    """count: pointer int64 []. limit, slack: float32; see `committed`."""

    count: tl.tensor
    limit: tl.tensor
    slack: tl.tensor


class Commits(NamedTuple):
    """Pointers uint8: chosen [rows, size]; left [rows], whether masks are left."""

    chosen: tl.tensor
    left: tl.tensor


@triton.jit
def commit_masks(decided, offered, rule, commits, HELD: tl.constexpr, SPAN: tl.constexpr, PDL: tl.constexpr):
    """Puts the tokens that are `committed` in the place of their masks; a program takes a row.

    HELD: a power of two that holds all its places; SPAN of them are compared with all at once.
    """
    row = tl.program_id(0).to(tl.int64)
    overlap_launches(PDL)
    place = tl.arange(0, HELD)
    inside = place < decided.size
    at, before, confidence = read_places(decided, offered, row, place)
    tokens = tl.load(offered.tokens + row * decided.size + place, mask=inside, other=0)
    rank = tl.zeros((HELD,), tl.int32)
    for start in range(0, HELD, SPAN):
        other = start + tl.arange(0, SPAN)
        _, _, theirs = read_places(decided, offered, row, other)
        rank += count_ahead(confidence, place, theirs, other)
    taken = committed(confidence, rank, rule, HELD)
    masks = inside & (tl.where(taken, tokens, before) == decided.mask_token)
    tl.debug_barrier()  # all have read the ids
    tl.store(at, tokens, mask=taken)
    tl.store(commits.chosen + row * decided.size + place, taken.to(tl.uint8), mask=inside)
    tl.store(commits.left + row, tl.max(masks.to(tl.int32), axis=0).to(tl.uint8))


@triton.jit
def read_places(decided, offered, row, place):
    """Of places of a row: where their ids lie, these, and the confidence; -inf of all that is no mask."""
    inside = place < decided.size
    at = decided.ids + row * decided.row_stride + tl.load(decided.places + place, mask=inside, other=0)
    before = tl.load(at, mask=inside, other=0)
    confidence = tl.load(offered.confidence + row * decided.size + place, mask=inside, other=0.0)
    masked = inside & (before == decided.mask_token)
    return at, before, tl.where(masked, confidence, float("-inf"))


@triton.jit
def count_ahead(confidence, place, theirs, other):
    """How many of the others are ahead of each: larger, or as large and to the left. NaN is ahead, as a sort has it."""
    own = tl.where(confidence == confidence, confidence, float("inf"))[:, None]
    theirs = tl.where(theirs == theirs, theirs, float("inf"))[None, :]
    ahead = (theirs > own) | ((theirs == own) & (other[None, :] < place[:, None]))
    return tl.sum(ahead.to(tl.int32), axis=1)


@triton.jit
def committed(confidence, rank, rule, HELD: tl.constexpr):
    """Those of rank 0 .. count - 1, and all ahead of the first c < limit - slack / (rank + 2); none that is -inf."""
    above = confidence >= rule.limit - tl.div_rn(1.0, (rank + 2).to(tl.float32)) * rule.slack
    first = tl.min(tl.where(above, HELD, rank), axis=0)
    return (confidence > float("-inf")) & ((rank < tl.load(rule.count)) | (rank < first))


def commit_tiles(size):
    """Tiles and launch options; they decide the speed, never the result."""
    held = max(triton.next_power_of_2(size), 16)
    return {"HELD": held, "SPAN": min(held, 32), "num_warps": 1 if held <= 32 else 4 if held <= 256 else 8}
