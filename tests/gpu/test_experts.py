"""Mixtures of experts on a GPU: integers bit for bit, floats by relative norm, in CUDA graphs, from run to run."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from qspec.catalog import Activation
from qspec.kernels import experts, reference
from qspec.kernels.compiling import compiled
from qspec.kernels.experts import SortedRows
from qspec.kernels.generate import KernelLibrary
from qspec.kernels.linear import QuantLinear
from qspec.kernels.merged import parts_of
from qspec.kernels.packing import PackedLinear
from qspec.kernels.reference import PreparedInput, ReferenceWeight
from qspec.models.decoder import Decoder
from qspec.models.registry import FAMILIES
from qspec.models.routing import Routing
from tests.gpu.on_gpu import moved, on_cpu, prepared_on_gpu
from tests.kernels.cases import (
    FLOATS,
    Format,
    mixture_of,
    poisoned_memory,
    random_choice,
    random_experts,
    random_input,
    random_linear,
    relative_error,
)
from tests.models.expert_layout import TINY_LLADA2

pytestmark = pytest.mark.gpu
FORMATS = (
    Format(a_bits=8),
    Format(),
    Format(w_bits=8, a_bits=8),
    Format(w_group=128, a_bits=16),
    Format(w_group=128, w_symmetric=False, a_bits=16),
    Format(w_bits=3, w_group=128, a_bits=16),
    Format(w_group=64, w_symmetric=False, a_bits=8, a_group=64, a_symmetric=False),  # the portable kernel
    FLOATS[0],
)
SIZES = ((1, 8), (10, 8), (37, 16), (300, 8), (1500, 8))  # tokens, experts: 8 to 128 rows a tile


@pytest.fixture(scope="module")
def library() -> KernelLibrary:
    return KernelLibrary()


def live(chosen: Tensor, where: SortedRows, expert: int) -> Tensor:
    """Rows of an expert's pairs."""
    return where.place[chosen == expert].long()


@pytest.mark.parametrize("fmt", FORMATS, ids=str)
def test_grouped_products_are_those_of_each_expert(fmt: Format, library: KernelLibrary) -> None:
    for tokens, count in SIZES:
        parts = [random_linear(fmt, 192, 384, 100 * tokens + expert) for expert in range(count)]
        stack = moved(experts.stacked(parts), "cuda")
        x = random_input(tokens, 384, tokens, torch.bfloat16, device="cuda")
        prepared = prepared_on_gpu(library, parts[0].kernels.row, None, x)
        chosen, _ = random_choice(tokens, count, 3, tokens, device="cuda")
        y, ordered, where = product(library, stack, count, prepared, chosen)
        again, _, _ = product(library, stack, count, prepared, chosen)
        for expert, part in enumerate(parts):
            rows = live(chosen, where, expert)
            if len(rows):
                one = reference.rows_of(on_cpu(ordered), rows.cpu())
                expected = reference.multiply(ReferenceWeight.of(part), one)
                assert relative_error(y[rows].cpu(), expected) < 1e-2
                assert torch.equal(y[rows], again[rows])
                if fmt.a_bits < 16 and fmt.number == "int":
                    assert torch.equal(y[rows].cpu(), expected)


def product(
    library: KernelLibrary, stack: PackedLinear, count: int, prepared: PreparedInput, chosen: Tensor
) -> tuple[Tensor, PreparedInput, SortedRows]:
    with poisoned_memory():
        ordered, where = experts.sort_rows(library, stack.kernels.gemm, prepared, chosen, count)
        return experts.multiply(library, stack, count, ordered, where), ordered, where


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("fmt", FORMATS, ids=str)
def test_half_empty_tiles_give_the_bits_of_full_ones(
    fmt: Format, gated: bool, library: KernelLibrary, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 128 rows, as many of them real as make a tile full, half full, or one more or less; against tiles of 64."""
    filled = (1, 63, 64, 65, 127, 128, 129, 193)
    pairs, downs = random_experts(fmt, len(filled), 512, 256, 7, bias=True, device="cuda")
    parts = [PackedLinear.merged([replace(one, kernels=one.kernels.gated()) for one in pair]) for pair in pairs]
    parts = parts if gated else downs
    stack, columns = experts.stacked(parts), 512 if gated else 256
    chosen = torch.arange(len(filled), device="cuda").repeat_interleave(torch.tensor(filled, device="cuda"))
    chosen = chosen[torch.randperm(len(chosen), device="cuda")][:, None]
    x = random_input(len(chosen), columns, 7, torch.bfloat16, device="cuda")
    prepared = prepared_on_gpu(library, stack.kernels.row, None, x)
    found = []
    for rows in (128, 64):
        monkeypatch.setattr(experts, "row_tile", lambda *_, rows=rows: rows)
        y, _, where = product(library, stack, len(filled), prepared, chosen)
        assert where.rows == rows
        found.append(y[where.place[:, 0].long()])
    assert torch.equal(*found)
    if fmt.a_bits < 16 and fmt.number == "int" and not gated:
        for expert, part in enumerate(parts):
            token = (chosen[:, 0] == expert).nonzero()[:, 0].cpu()
            one = reference.rows_of(on_cpu(prepared), token)
            expected = reference.multiply(ReferenceWeight.of(moved(part, "cpu")), one)
            assert torch.equal(found[0].cpu()[token], expected)


@pytest.mark.parametrize(
    ("fmt", "activation"),
    [*((fmt, "silu") for fmt in FORMATS), *((fmt, "gelu_tanh") for fmt in (FORMATS[0], *FORMATS[3:5], *FORMATS[6:]))],
    ids=str,
)
def test_a_mixture_is_near_the_reference(fmt: Format, activation: Activation) -> None:
    """Exponentials and float sums are the device's own, and a code of the inner rows may differ."""
    parts = random_experts(fmt, 16, 512, 256, 1, bias=False)
    mixture, expected = mixture_of(*parts, activation).cuda(), mixture_of(*parts, activation)
    for tokens in (3, 40, 500):
        x = random_input(tokens, 512, tokens, torch.bfloat16)
        chosen, weights = random_choice(tokens, 16, 4, tokens)
        with poisoned_memory():
            found = mixture(x.cuda(), chosen.cuda(), weights.cuda())
        assert relative_error(found.cpu(), expected(x, chosen, weights)) < 1e-2


@pytest.mark.parametrize("fmt", [Format(a_bits=8), Format(w_group=128, a_bits=16)], ids=str)
def test_a_block_computes_its_experts_together(fmt: Format) -> None:
    """As expert by expert, which waits for the device; a graph holds only the former."""
    sizes = {"hidden_size": 256, "head_dim": 64, "rotary_dim": 32, "moe_intermediate_size": 128, "num_experts": 8}
    family = FAMILIES["llada2"]
    decoder = Decoder(family, family.shape(TINY_LLADA2 | sizes), device="cuda", dtype=torch.bfloat16)
    block = next(block for block in decoder.blocks if block.mixture is not None)
    assert block.mixture is not None
    pairs, downs = random_experts(fmt, 8, 256, 128, 3, bias=False, device="cuda")
    for expert, (pair, down) in enumerate(zip(pairs, downs, strict=True)):
        whole = QuantLinear(PackedLinear.merged([replace(one, kernels=one.kernels.gated()) for one in pair]))
        for name, part in zip(("gate", "up"), parts_of(whole, [128, 128]), strict=True):
            block.replace(f"mlp.experts[{expert}].{name}", part)
        block.replace(f"mlp.experts[{expert}].down", QuantLinear(down))
    x = random_input(40, 256, 1, torch.bfloat16, device="cuda")
    routing = Routing(*random_choice(40, 8, block.mixture.top_k, 1, device="cuda"))
    expected = block.mixed(x, routing)
    block.grouped = experts.grouped(block, 8)
    assert block.grouped is not None
    found = block.mixed(x, routing)
    assert relative_error(found, expected) < 1e-2
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = block.mixed(x, routing)
    graph.replay()
    assert torch.equal(captured, found)


def test_a_pass_that_compiles_launches_nothing_wild() -> None:
    """Of another number of tokens some kernels are new and not launched, and those behind them are."""
    mixture = mixture_of(*random_experts(Format(a_bits=8), 16, 512, 256, 4, bias=False)).cuda()
    for tokens in (5, 40, 100, 900):
        x = random_input(tokens, 512, tokens, torch.bfloat16, device="cuda")
        chosen, weights = random_choice(tokens, 16, 4, tokens, device="cuda")
        with poisoned_memory():
            found = compiled(lambda x=x, chosen=chosen, weights=weights: mixture(x, chosen, weights))
        torch.cuda.synchronize()
        assert torch.equal(found, mixture(x, chosen, weights))


def test_a_graph_follows_another_choice_of_experts() -> None:
    mixture = mixture_of(*random_experts(Format(a_bits=8), 16, 512, 256, 2, bias=False)).cuda()
    x = random_input(30, 512, 1, torch.bfloat16, device="cuda")
    chosen, weights = random_choice(30, 16, 4, 1, device="cuda")
    mixture(x, chosen, weights)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = mixture(x, chosen, weights)
    for seed in (2, 3):
        others, shares = random_choice(30, 16, 4, seed, device="cuda")
        expected = mixture(x, others, shares)
        chosen.copy_(others)
        weights.copy_(shares)
        graph.replay()
        assert torch.equal(found, expected)
