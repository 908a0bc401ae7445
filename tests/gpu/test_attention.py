"""Attention of few queries on a CUDA GPU.

python -m pytest tests/gpu/test_attention.py -m gpu
"""

from __future__ import annotations

import pytest
import torch

from qspec.kernels.attention import attend
from qspec.models.decoder import attention
from tests.kernels.cases import poisoned_memory, relative_error

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]

ATTENTION = [(1, 32, 32, 32, 1024, 128), (2, 28, 4, 33, 771, 128), (3, 8, 2, 1, 70, 64), (1, 4, 4, 64, 130, 64)]


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", ATTENTION)
def test_attention_of_few_queries(shape: tuple[int, ...], dtype: torch.dtype, masked: bool) -> None:
    """Near float64, and the same in every run, into poisoned memory; `attend` gives more queries to torch."""
    batch, heads, kv_heads, queries, keys, width = shape
    sizes = ((queries, heads), (keys, kv_heads), (keys, kv_heads))
    q, k, v = (torch.randn(batch, n, h, width, device="cuda", dtype=dtype).transpose(1, 2) for n, h in sizes)
    mask = torch.rand(batch, 1, 1, keys, device="cuda") > 0.4 if masked else None
    if mask is not None:
        mask[..., : keys // 2], mask[..., -1] = False, True
    with poisoned_memory():
        found = attend(q, k, v, mask)
    assert all(torch.equal(attend(q, k, v, mask), found) for _ in range(5))
    expected = attention(q.double(), k.double(), v.double(), mask)
    limit = 6e-3 if dtype == torch.bfloat16 else 1e-3
    assert relative_error(found, expected) < limit
    many = q.repeat(1, 1, 65, 1)
    assert relative_error(attend(many, k, v, mask)[:, :, :queries], expected) < limit
