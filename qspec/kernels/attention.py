"""Attention on a GPU: few queries, as in a pass over a window, take the generated kernel, all others torch's.

torch 2.11 gives the 32 queries of a head one program, so that 32 heads leave three quarters of an H200 idle; the
generated kernel shares a head's keys among programs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qspec.catalog import FEW, HEAD_WIDTHS
from qspec.kernels import launch
from qspec.kernels.generate import library
from qspec.models.decoder import Decoder, attention

DTYPES = (torch.bfloat16, torch.float16)


def install(decoder: Decoder) -> Decoder:
    """The decoder, its blocks attending through `attend`."""
    for block in decoder.blocks:
        block.attention = attend
    return decoder


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """`qspec.models.decoder.attention`, by the kernel that suits the number of queries."""
    few = q.shape[2] <= FEW and q.shape[3] in HEAD_WIDTHS and q.dtype in DTYPES
    return few_queries(q, k, v, mask) if few and q.is_cuda else attention(q, k, v, mask)


@torch.library.custom_op("qspec::attend", mutates_args=())
def few_queries(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """`launch.attend` as one node of a compiled graph."""
    with torch.cuda.device(q.device):
        return launch.attend(library(None), q, k, v, mask)


@few_queries.register_fake
def _shape(q: Tensor, *_: Tensor | None) -> Tensor:
    batch, heads, tokens, width = q.shape
    return q.new_empty(batch, tokens, heads, width).transpose(1, 2)
