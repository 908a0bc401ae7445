"""Random numbers that depend on what they are for alone: against Python's whole numbers, and as random numbers."""

from __future__ import annotations

import math

import pytest
import torch

from qspec.models.samplers.noise import uniform
from qspec.seeds import LARGEST_SEED
from tests.models import counted


@pytest.mark.parametrize("seed", [0, 7, LARGEST_SEED])
def test_numbers_are_splitmix64(seed: int) -> None:
    rows, places = torch.tensor([2, 5]), torch.tensor([[0, 1, 9], [4, 4, 4095]])
    found = uniform(torch.tensor(seed), torch.tensor(3), rows, places, "token", 11)
    expected = [
        [[counted.uniform(seed, 0, 3, row, place, token) for token in range(11)] for place in own]
        for row, own in zip(rows.tolist(), places.tolist(), strict=True)
    ]
    assert found.tolist() == expected
    found = uniform(torch.tensor(seed), torch.tensor(3), rows, places, "place")
    assert found[1, 2].item() == counted.uniform(seed, 1, 3, 5, 4095)


def test_splitmix64_is_the_published_one() -> None:
    """The first outputs of its generator from state 0, as reference implementations print them."""
    outputs = [counted.output(0, n) for n in range(3)]
    assert outputs == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]


def test_the_numbers_are_uniform_and_do_not_follow_from_each_other() -> None:
    """Mean, variance, and correlation of neighbours by token, place, row, step and seed, each within 4.5 errors."""
    rows, places = torch.arange(4), torch.arange(16).expand(4, -1)
    u = torch.stack(
        [
            torch.stack([uniform(torch.tensor(s), torch.tensor(t), rows, places, "token", 200) for t in range(4)])
            for s in range(4)
        ]
    )
    assert u.min() > 0
    assert u.max() < 1
    error = 4.5 / math.sqrt(u.numel())
    assert abs(u.mean() - 0.5) < error * math.sqrt(1 / 12)
    assert abs(u.var() - 1 / 12) < error * math.sqrt(1 / 180)
    for axis in range(u.ndim):
        count = u.shape[axis] - 1
        near = (u.narrow(axis, 0, count) - 0.5) * (u.narrow(axis, 1, count) - 0.5)
        assert abs(near.mean()) < 4.5 / 12 / math.sqrt(near.numel()), axis


def test_a_place_has_its_number_whatever_is_computed_with_it() -> None:
    given = torch.tensor(5), torch.tensor(2)
    whole = uniform(*given, torch.arange(3), torch.arange(8).expand(3, -1), "token", 6)
    part = uniform(*given, torch.tensor([2]), torch.tensor([[7, 3]]), "token", 6)
    assert torch.equal(part[0], whole[2, [7, 3]])
