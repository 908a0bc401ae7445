"""The mixture of experts as the reference computes it, and the tiles that its kernels take."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from qspec.catalog import Activation
from qspec.kernels import experts, reference
from qspec.kernels.experts import stacked
from qspec.kernels.gemm_sizes import row_tile
from qspec.kernels.generate import KernelLibrary
from qspec.kernels.linear import QuantLinear
from qspec.models.inputs import Gated, Normed
from tests.kernels.cases import (
    FLOATS,
    Format,
    mixture_of,
    poisoned_memory,
    random_choice,
    random_experts,
    random_given,
    random_input,
    random_linear,
    relative_error,
)

FORMATS = (
    Format(w_bits=8, a_bits=8),
    Format(w_group=32, w_symmetric=False, a_bits=8, a_group=32, a_symmetric=False),
    Format(w_group=32, w_symmetric=False, a_bits=16),
    FLOATS[0],
)


@pytest.mark.parametrize(
    ("fmt", "activation"), [*((fmt, "silu") for fmt in FORMATS), (FORMATS[0], "gelu_tanh")], ids=str
)
def test_a_token_is_what_the_linears_of_its_experts_give(fmt: Format, activation: Activation) -> None:
    """Token by token and expert by expert, gate and up apart."""
    pairs, downs = random_experts(fmt, 4, 64, 96, seed=3)
    x = random_input(9, 64, 0, torch.bfloat16)
    chosen, weights = random_choice(9, 4, 2, 0)
    found = mixture_of(pairs, downs, activation)(x.reshape(3, 3, 64), chosen.reshape(3, 3, 2), weights.reshape(3, 3, 2))
    assert found.shape == (3, 3, 64)
    assert found.dtype == torch.bfloat16
    linears = [[QuantLinear(packed) for packed in packs] for packs in (*zip(*pairs, strict=True), downs)]
    for token, (row, own, shares) in enumerate(zip(x, chosen.tolist(), weights, strict=True)):
        total = torch.zeros(64)
        for expert, share in zip(own, shares, strict=True):
            gate, up, down = (linear[expert] for linear in linears)
            y = down(Gated(gate(row[None]), up(row[None]), activation).value())
            total += share * y[0].float()
        exact = fmt.a_bits < 16 and fmt.number == "int"  # float sums are in an order that the number of rows decides
        assert relative_error(found.reshape(9, 64)[token], total) < (2**-8 if exact else 2**-6)
        if exact:
            assert torch.equal(found.reshape(9, 64)[token], total.bfloat16())


def test_a_mixture_reads_what_its_input_is_computed_of() -> None:
    pairs, downs = random_experts(Format(w_bits=8, a_bits=8), 3, 64, 32, seed=5)
    given = random_given("rmsnorm", 6, 64, 1)
    assert isinstance(given, Normed)
    mixture, (chosen, weights) = mixture_of(pairs, downs), random_choice(6, 3, 2, 1)
    assert torch.equal(mixture(given, chosen, weights), mixture(given.value(), chosen, weights))


def test_no_token_gives_no_row() -> None:
    mixture = mixture_of(*random_experts(Format(), 3, 64, 32, seed=5))
    found = mixture(torch.empty(2, 0, 64), torch.empty(2, 0, 2, dtype=torch.int64), torch.empty(2, 0, 2))
    assert found.shape == (2, 0, 64)


@pytest.mark.parametrize("fmt", [FORMATS[1], FORMATS[2], FLOATS[0]], ids=str)
def test_a_stack_is_cut_into_what_it_was_made_of(fmt: Format) -> None:
    """Zero points of an odd number of channels share bytes across experts."""
    parts = [random_linear(fmt, 33, 64, seed) for seed in range(3)]
    stack = stacked(parts)
    assert stack.out_features == 99
    assert stack.kernels.gemm.name == f"{parts[0].kernels.gemm.name}_experts"
    for expert, part in enumerate(parts):
        cut = stack.channels(33 * expert, 33 * expert + 33).tensors()
        assert cut.keys() == part.tensors().keys()
        assert all(torch.equal(cut[name], tensor) for name, tensor in part.tensors().items())


@pytest.mark.parametrize(
    ("fmt", "tiles"),
    [
        (Format(a_bits=8), {0.1: 8, 4: 8, 5: 16, 12: 16, 13: 32, 24: 32, 25: 64, 5000: 64}),
        (Format(w_bits=8, a_bits=8), {4: 8, 12: 16, 24: 32, 192: 64, 193: 128}),
        (Format(w_group=128, a_bits=16), {4: 8, 12: 16, 24: 32, 48: 64, 49: 128}),
    ],
    ids=str,
)
def test_tiles_hold_the_mean_of_an_expert_with_room(fmt: Format, tiles: dict[float, int]) -> None:
    assert {mean: row_tile(mean, fmt.gemm()) for mean in tiles} == tiles


def test_what_no_kernel_sorted_has_no_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a pass that only compiles, kernels run behind others that are not launched: of memory that holds anything."""
    gemm, chosen = Format(a_bits=8).gemm(), torch.zeros(5, 3, dtype=torch.int64)
    kernels = KernelLibrary()
    monkeypatch.setitem(kernels._modules, experts.SORT, SimpleNamespace(run=lambda *_: None))
    with poisoned_memory():
        prepared = reference.prepare(random_linear(Format(a_bits=8), 8, 64, 0).kernels.row, None, torch.ones(5, 64))
        ordered, where = experts.sort_rows(kernels, gemm, prepared, chosen, 7)
    assert (where.rows, where.total) == (8, 8 * (15 // 8 + 7))
    assert where.place.tolist() == [[0, 0, 0]] * 5
    assert where.tiles.tolist() == [0] * (1 + 2 * 8)
    assert where.live.tolist() == [0]
    assert ordered.values.shape == (where.total, 64)
    assert {tensor.data_ptr() % 16 for tensor in (where.place, where.tiles, where.live)} == {0}
