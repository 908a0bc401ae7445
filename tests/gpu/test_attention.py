"""Attention of few queries on a CUDA GPU.

python -m pytest tests/gpu/test_attention.py -m gpu
"""

from __future__ import annotations

import pytest
import torch

from qspec.catalog import MEASURES, MOST_DECIDED
from qspec.kernels.attention import KERNELS, attend
from qspec.models.commit import EVERY, NONE, Sure
from qspec.models.inputs import Gated, Normed
from qspec.models.likeliest import Measure
from qspec.models.operations import TORCH, AttentionContext, KeyValues, attention
from tests.kernels.cases import poisoned_memory, relative_error

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]

ATTENTION = [
    *((1, 32, 32, 32, 1024, 128), (2, 28, 4, 33, 771, 128), (3, 8, 2, 1, 70, 64), (1, 4, 4, 64, 130, 64)),
    *((300, 4, 4, 8, 64, 64), (64, 32, 8, 16, 64, 128), (40, 32, 32, 32, 128, 64)),  # programs share multiprocessors
]


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


@pytest.mark.parametrize("queries", [8, 64])
def test_products_end_before_their_memory_is_used_again(queries: int) -> None:
    """Many launches of one block of keys, whose programs go from products to their results at once."""
    q, k, v = (torch.randn(16, 4, n, 64, device="cuda", dtype=torch.bfloat16) for n in (queries, 48, 48))
    mask = torch.rand(16, 1, 1, 48, device="cuda") > 0.4
    expected = attend(q, k, v, mask)
    found = [attend(q, k, v, mask) for _ in range(2000)]
    assert bool(expected.isfinite().all())
    assert all(torch.equal(one, expected) for one in found)


def test_a_graph_goes_on_after_a_launch_of_many_heads() -> None:
    """Programs of a head go on counting where the graph was captured, which no later launch frees."""
    q, k, v = (torch.randn(1, 32, n, 128, device="cuda", dtype=torch.bfloat16) for n in (32, 1024, 1024))
    expected = attend(q, k, v, None)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = attend(q, k, v, None)
    attend(*(one.expand(160, -1, -1, -1) for one in (q, k, v)), None)
    after = [torch.full((4096,), 7, dtype=torch.int32, device="cuda") for _ in range(64)]
    for _ in range(3):
        found.fill_(float("nan"))
        graph.replay()
        assert torch.equal(found, expected)
    assert all(bool((one == 7).all()) for one in after)


@pytest.mark.parametrize("kept", ["nothing", "all", "a part", "places"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("batch", "heads", "groups", "tokens", "width"), [(1, 32, 32, 1024, 128), (2, 28, 4, 33, 128), (3, 12, 12, 1, 64)]
)
def test_rotary_positions_are_the_decoders_bits(
    batch: int, heads: int, groups: int, tokens: int, width: int, dtype: torch.dtype, kept: str
) -> None:
    whole = torch.randn(batch, tokens, heads + 2 * groups, width, device="cuda").to(dtype)
    q, k, v = (part.transpose(1, 2) for part in whole.split((heads, groups, groups), dim=2))
    angles = 900 * torch.rand(batch, 1, tokens, width // 2, device="cuda")
    angles = torch.cat((angles, angles), dim=-1)
    length = tokens if kept == "all" else 2 * tokens + 9
    places = torch.randperm(length, device="cuda")[:tokens]
    chosen = {"a part": slice(7, 7 + tokens), "places": places}.get(kept, slice(None))
    found = []
    for operations in (KERNELS, TORCH):
        room = None
        if kept != "nothing":
            room = KeyValues(*torch.full((2, batch, groups, length, width), 3.0, device="cuda").to(dtype))
        context = AttentionContext(angles.cos(), angles.sin(), None, chosen, room)
        with poisoned_memory():
            found.append(operations.rotate_and_keep(q, k, v, context))
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(1, 1024, 4096), (2, 33, 3584), (3, 1, 12288), (1, 5, 18944)])
def test_what_plain_linears_read_is_torchs(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """RMSNorm and f(gate) up by one kernel each: torch's values, but for a last bit where a sum's order decides, or
    where 1 + tanh has lost some of gelu(gate)."""
    x, up = (torch.randn(shape, device="cuda").to(dtype) for _ in range(2))
    gain = 1 + 0.1 * torch.randn(shape[-1], device="cuda").to(dtype)
    for given in (Normed(x, gain, 1e-5), Gated(x, up), Gated(x, up, "gelu_tanh")):
        with poisoned_memory():
            found = KERNELS.value_of(given)
        expected = TORCH.value_of(given)
        assert found.shape == expected.shape
        assert (found != expected).float().mean() < 1e-2
        assert relative_error(found, expected.double()) < (1e-3 if dtype == torch.bfloat16 else 2e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize(("rows", "vocab"), [(32, 126464), (1, 152064), (300, 60000), (5, 300)])
def test_the_choice_of_tokens_is_torchs(rows: int, vocab: int, measure: Measure, dtype: torch.dtype) -> None:
    """The same tokens, the first of equals; confidences to a few last bits, and alike for every number of rows."""
    logits = (3 * torch.randn(rows, vocab, device="cuda")).to(dtype)
    logits[0, [7, vocab - 1]] = 20.0
    absent = torch.rand(vocab, device="cuda") < 0.3
    for barred in (None, absent):
        finite, ours = (torch.tensor(True, device="cuda") for _ in range(2))
        tokens, confidence = TORCH.likeliest(logits, barred, finite, measure)
        with poisoned_memory():
            found = KERNELS.likeliest(logits, barred, ours, measure)
        assert torch.equal(found[0], tokens)
        torch.testing.assert_close(found[1], confidence, rtol=1e-4, atol=1e-5 + 2e-10 * vocab)
        alone = KERNELS.likeliest(logits[-1:], barred, ours, measure)
        assert torch.equal(alone[1], found[1][-1:])
        assert bool(ours)
    logits[-1, 5] = torch.nan
    KERNELS.likeliest(logits, None, ours, measure)
    assert not bool(ours)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("rows", "size"), [(1, 32), (8, 32), (3, 70), (2, 200), (2, MOST_DECIDED), (2, 1000)])
def test_what_is_committed_is_torchs(rows: int, size: int, dtype: torch.dtype) -> None:
    """To the bit, of equal confidences too, by the kernel and beyond what it takes."""
    mask, start = 126336, 17
    for count in (0, 1, 7, size):
        for sure in (NONE, Sure(0.9), Sure(1.0, 1.7), EVERY):
            ids = torch.randint(0, 100, (rows, start + size + 5), device="cuda")
            ids = torch.where(torch.rand(ids.shape, device="cuda") < 0.8, mask, ids)
            places = start + torch.arange(size, device="cuda")
            tokens = torch.randint(0, 100, (rows, size), device="cuda")
            confidence = (torch.rand(rows, size, device="cuda") * 40).round().to(dtype) / 40
            confidence[:, ::9] = -torch.inf
            share, ours = torch.tensor(count, device="cuda"), ids.clone()
            expected = TORCH.commit(ids, places, tokens, confidence, share, mask, sure)
            with poisoned_memory():
                found = KERNELS.commit(ours, places, tokens, confidence, share, mask, sure)
            assert torch.equal(ours, ids)
            assert torch.equal(found[0], expected[0])
            assert torch.equal(found[1], expected[1])
