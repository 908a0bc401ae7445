"""Hadamard matrices: H H^T = n I in whole numbers, and the orders that there are, counted another way."""

from __future__ import annotations

import pytest
import torch

from qspec import hadamard, hadamard_orders
from qspec.catalog import NoKernel


def is_hadamard(h: torch.Tensor) -> bool:
    wide = h.int()
    return bool((wide.abs() == 1).all()) and torch.equal(wide @ wide.T, torch.eye(len(h), dtype=torch.int32) * len(h))


def prime_powers(limit: int) -> set[int]:
    primes = [p for p in range(2, limit) if all(p % d for d in range(2, p))]
    return {p**k for p in primes for k in range(1, 9) if p**k < limit}


def reachable(limit: int) -> set[int]:
    """Orders up to `limit` of Sylvester's, Paley's and all their Kronecker products."""
    powers = prime_powers(limit)
    orders = {1, 2, *(q + 1 for q in powers if q % 4 == 3), *(2 * (q + 1) for q in powers if q % 4 == 1)}
    while more := {a * b for a in orders for b in orders if a * b <= limit} - orders:
        orders |= more
    return {n for n in orders if n <= limit}


ORDERS = sorted(reachable(256))


def test_the_orders_are_all_that_the_constructions_reach() -> None:
    assert [n for n in range(300) if hadamard_orders.exists(n) and n <= 256] == ORDERS
    assert {12, 20, 28, 36, 44, 52, 60, 96, 100, 148, 244, 256} <= set(ORDERS)
    # no order of which the smallest known matrix needs another construction
    assert not {92, 116, 156, 172, 184, 188, 232, 236}.intersection(ORDERS)


@pytest.mark.parametrize("order", ORDERS)
def test_rows_are_orthogonal(order: int) -> None:
    h = hadamard.matrix(order)
    assert h.shape == (order, order)
    assert is_hadamard(h)


@pytest.mark.parametrize("order", [344, 768, 896, 3584])  # 344 = 7^3 + 1; the rest are widths
def test_wider_ones(order: int) -> None:
    """A random combination of rows has the length that orthogonal rows give it, in whole numbers."""
    h = hadamard.matrix(order).double()
    x = torch.randint(-9, 10, (3, order), generator=torch.Generator().manual_seed(order)).double()
    assert torch.equal((x @ h) @ h.T, order * x)
    assert set(h.unique().tolist()) == {-1.0, 1.0}


def test_the_first_ones_written_out() -> None:
    assert hadamard.matrix(1).tolist() == [[1]]
    assert hadamard.matrix(2).tolist() == [[1, 1], [1, -1]]
    assert hadamard.matrix(4).tolist() == [[1, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]]
    # Paley I with q = 11: the squares are 1, 3, 4, 5, 9, and chi(-j) = -chi(j)
    assert hadamard.matrix(12)[0].tolist() == [1] * 12
    assert hadamard.matrix(12)[1].tolist() == [-1, 1, -1, 1, -1, -1, -1, 1, 1, 1, -1, 1]


@pytest.mark.parametrize("order", [0, -4, 3, 6, 92, 14, 18943])
def test_orders_without_a_construction(order: int) -> None:
    assert not hadamard_orders.exists(order)
    with pytest.raises(ValueError, match=f"order {order}$"):
        hadamard.matrix(order)


def test_orthogonal_to_rounding() -> None:
    for order in (12, 148, 512):
        q = hadamard.orthogonal(order).float().double()
        torch.testing.assert_close(q @ q.T, torch.eye(order, dtype=torch.float64), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("channels", "orders"),
    [(32, (32,)), (128, (128,)), (192, (16, 12)), (256, (16, 16)), (512, (32, 16)), (768, (64, 12)), (896, (32, 28)),
     (1024, (64, 16)), (2048, (128, 16)), (3584, (128, 28)), (4096, (128, 32)), (12288, (128, 96)), (18944, (128, 148)),
     (96, (32,)), (1184, (32,)), (11008, (16, 16)), (1536 * 43, (128, 12))],
)  # fmt: skip
def test_factors_of_the_sizes_that_models_have(channels: int, orders: tuple[int, ...]) -> None:
    assert hadamard_orders.factors(channels, "x") == orders


@pytest.mark.parametrize("channels", [0, 1, 7, 24, 1000])
def test_sizes_without_factors_name_the_module(channels: int) -> None:
    with pytest.raises(
        NoKernel, match=rf"{channels} input channels has a kernel: no multiple of 16\n  where: blocks\[0\]\.mlp\.down"
    ):
        hadamard_orders.factors(channels, "blocks[0].mlp.down")


@pytest.mark.parametrize("channels", range(16, 2049, 16))
def test_every_multiple_of_16_has_factors(channels: int) -> None:
    """The largest block that an order, or a product of two that row kernels take, makes of the channels' divisors."""
    orders = hadamard_orders.factors(channels, "x")
    size = orders[0] * (orders[1] if len(orders) > 1 else 1)
    assert channels % size == 0
    firsts = [16, 32, 64, 128]
    pairs = {a * b for a in firsts for b in ORDERS if 2 <= b <= 256} | set(firsts)
    assert size == max(s for s in pairs if channels % s == 0)
