"""What a model computes besides its linears, on a GPU: attention, rotary positions, norms, gates, the choice of tokens
and their commit by our kernels.

Attention of few queries, as in a pass over a window, takes the generated kernel, all other torch's: torch 2.11 gives
the 32 queries of a head one program, so that 32 heads leave three quarters of an H200 idle, where the generated kernel
shares a head's keys among programs. Rotary positions, with the keys and values that are kept, and what a plain linear
reads (RMSNorm, f(gate) up) take a kernel each, where torch's own operations take three to ten passes over memory; a
norm's sum has another order, the rest torch's bits. So does what a sampler asks of logits at temperature 0, instead of
a dozen passes; and what a step commits, of few places, instead of seventeen launches with torch's bits. torch.compile
fuses these by itself, so that a graph that is compiled has torch's.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qspec.catalog import FEW, HEAD_WIDTHS, MOST_DECIDED, ActivationKernel
from qspec.kernels import launch
from qspec.kernels.compiling import compiled
from qspec.kernels.generate import library
from qspec.models.commit import Sure
from qspec.models.decoder import Decoder
from qspec.models.inputs import LayerInput, source_of
from qspec.models.likeliest import Measure
from qspec.models.operations import TORCH, AttentionContext, Operations

DTYPES = (torch.bfloat16, torch.float16)
RUNS = 2  # of queries that see different keys, each of which takes a kernel


def install(decoder: Decoder) -> Decoder:
    """The decoder, its blocks computing by `KERNELS`."""
    for block in decoder.blocks:
        block.operations = KERNELS
    return decoder


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float | None = None) -> Tensor:
    """`qspec.models.operations.attention`, by the kernel that suits the number of queries and the scale."""
    if not q.is_cuda:
        return TORCH.attention(q, k, v, mask, scale)
    runs = 1 if mask is None else mask.shape[2]
    few = q.shape[2] <= runs * FEW and q.shape[3] in HEAD_WIDTHS and q.dtype in DTYPES and scale is None
    if few and runs == 1:
        found: Tensor = few_queries(q, k, v, mask)
        return found
    if few and mask is not None and runs <= RUNS:
        pairs = zip(q.chunk(runs, 2), mask.chunk(runs, 2), strict=True)
        parts = [few_queries(own, k, v, seen.contiguous()).transpose(1, 2) for own, seen in pairs]
        return torch.cat(parts, dim=1).transpose(1, 2)
    return TORCH.attention(q, *(k, v) if mask is None else own_heads(q, k, v), mask, scale)


def own_heads(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values with a head for each of q's. Of torch's memory-efficient kernels those that take a mask take no
    shared heads: with both, torch writes all scores down."""
    shared = q.shape[1] // k.shape[1]
    return (k, v) if shared == 1 else (k.repeat_interleave(shared, dim=1), v.repeat_interleave(shared, dim=1))


def rotate_and_keep(q: Tensor, k: Tensor, v: Tensor, context: AttentionContext) -> tuple[Tensor, Tensor, Tensor]:
    """`qspec.models.operations.rotate_and_keep`, in one pass over memory."""
    if not _takes(q) or q.shape[3] not in HEAD_WIDTHS or context.cos.shape[-1] != q.shape[3]:
        return TORCH.rotate_and_keep(q, k, v, context)
    with torch.cuda.device(q.device):
        return launch.rotate_and_keep(library(None), q, k, v, context)


def value_of(given: LayerInput) -> Tensor:
    """`qspec.models.inputs.value_of`, in one pass over memory."""
    if isinstance(given, Tensor) or not _takes(given.x):
        return TORCH.value_of(given)
    row = ActivationKernel((), 16, None, True, 1.0, source=source_of(given))
    with torch.cuda.device(given.x.device):
        return launch.prepare(library(None), row, None, given).values.view(given.x.shape)


def _takes(x: Tensor) -> bool:
    """Whether a kernel of our own computes of x."""
    return x.is_cuda and x.dtype in DTYPES and x.numel() > 0 and not torch.compiler.is_compiling()


def choose(logits: Tensor, absent: Tensor | None, finite: Tensor, measure: Measure) -> tuple[Tensor, Tensor]:
    """`qspec.models.likeliest.likeliest`, in one pass over memory. Of p log p torch's has log(p + 1e-10), as published,
    which is up to 1e-10 more for each token."""
    if not _takes(logits):
        return TORCH.likeliest(logits, absent, finite, measure)
    with torch.cuda.device(logits.device):
        return launch.likeliest(library(None), logits, absent, finite, measure)


def commit(
    ids: Tensor, places: Tensor, tokens: Tensor, confidence: Tensor, count: Tensor, mask: int, sure: Sure
) -> tuple[Tensor, Tensor]:
    """`qspec.models.commit.commit`, by one kernel up to as many places as that is faster for."""
    if not ids.is_cuda or len(places) > MOST_DECIDED:
        return TORCH.commit(ids, places, tokens, confidence, count, mask, sure)
    with torch.cuda.device(ids.device):
        return launch.commit(library(None), ids, places, (tokens, confidence), count, mask, sure)


KERNELS = Operations(attend, rotate_and_keep, value_of, compiled, choose, commit)


@torch.library.custom_op("qspec::attend", mutates_args=())
def few_queries(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """`launch.attend` as one node of a compiled graph."""
    with torch.cuda.device(q.device):
        return launch.attend(library(None), q, k, v, mask)


@few_queries.register_fake
def _shape(q: Tensor, *_: Tensor | None) -> Tensor:
    batch, heads, tokens, width = q.shape
    return q.new_empty(batch, tokens, heads, width).transpose(1, 2)
