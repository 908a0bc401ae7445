"""Intervals and paired tests: by hand, and how often they are right on drawn data whose truth is known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from qspec.evaluate.statistics import average, bootstrap, mcnemar, newcombe, of_means, of_shares, wilson


def answers(both: int, lost: int, won: int, neither: int) -> tuple[list[bool], list[bool]]:
    """Right answers of two models: what both have, only the first, only the second, none."""
    first = [True] * (both + lost) + [False] * (won + neither)
    return first, [True] * both + [False] * lost + [True] * won + [False] * neither


def test_mean_and_standard_error_by_hand() -> None:
    found = average([2.0, 4.0, 9.0])  # mean 5, squares 9 + 1 + 16 = 26, s^2 = 13
    assert found.mean == 5.0
    assert found.stderr == pytest.approx(math.sqrt(13 / 3))
    assert average([3.0]).stderr == 0


def test_wilsons_interval() -> None:
    """48 of 48: 1 / (1 + z^2 / 48) = 0.9259. 5 of 10: 0.2366 to 0.7634, as in the literature."""
    assert wilson(1.0, 48) == (pytest.approx(1 / (1 + 1.959964**2 / 48)), 1.0)
    assert wilson(0.5, 10) == (pytest.approx(0.2366, abs=1e-4), pytest.approx(0.7634, abs=1e-4))
    assert wilson(0.0, 48) == (0.0, pytest.approx(1 - 0.92590, abs=1e-4))


@pytest.mark.parametrize(
    ("lost", "won", "p"),
    [
        (0, 0, 1.0),
        (3, 3, 1.0),  # as even as can be
        (5, 0, 2 / 32),
        (6, 0, 2 / 64),
        (8, 1, 2 * (1 + 9) / 512),
        (1, 8, 2 * (1 + 9) / 512),
    ],
)
def test_mcnemars_exact_test_by_hand(lost: int, won: int, p: float) -> None:
    assert mcnemar(*answers(20, lost, won, 7)) == pytest.approx(p)


def test_48_of_48_twice_is_no_certainty() -> None:
    """Both shares' Wilson intervals reach down to 0.9259, and nothing is known of their correlation."""
    assert newcombe(*answers(48, 0, 0, 0)) == (pytest.approx(-0.0741, abs=1e-4), pytest.approx(0.0741, abs=1e-4))


def test_agreement_on_mixed_answers_narrows_the_interval() -> None:
    """20 right and 20 wrong by both: phi = (400 - 20) / 400 = 0.95, Wilson 0.3520 to 0.6480: half widths a = b = 0.148,
    and a sqrt(2 - 2 phi) = 0.0468."""
    low, high = newcombe(*answers(20, 0, 0, 20))
    assert (low, high) == (pytest.approx(-0.0468, abs=1e-4), pytest.approx(0.0468, abs=1e-4))


def test_a_difference_of_shares_needs_test_and_interval() -> None:
    assert of_shares(*answers(20, 5, 0, 5)).noise  # p = 0.0625
    shown = of_shares(*answers(20, 9, 0, 5))  # p = 2 / 512
    assert not shown.noise
    assert shown.interval is not None
    assert shown.interval[1] < 0
    alone = of_shares([True], [False])
    assert (alone.interval, alone.noise) == (None, True)


def test_the_interval_of_a_difference_holds_the_truth() -> None:
    """2,000 times 60 items: right with 0.7 and, of those, lost with 0.1; of the others, won with 0.2: -0.01."""
    generator = np.random.default_rng(1)
    held = 0
    for _ in range(2000):
        before, chance = generator.random(60) < 0.7, generator.random(60)
        after = np.where(before, chance >= 0.1, chance < 0.2)
        low, high = newcombe(before.tolist(), after.tolist())
        held += low <= -0.7 * 0.1 + 0.3 * 0.2 <= high
    assert held / 2000 > 0.93


@pytest.mark.parametrize("n", [4, 40])
def test_the_bootstrap_holds_the_truth_for_few_items_too(n: int) -> None:
    generator = np.random.default_rng(n)
    held = [low <= 1 <= high for low, high in (bootstrap(generator.normal(1, 2, n)) for _ in range(200))]
    assert sum(held) / 200 > 0.88  # plain percentiles of 4 items hold it 80 times in 100


def test_the_bootstrap_of_many_items_is_the_normal_interval() -> None:
    values = np.random.default_rng(0).normal(3, 1, 400)
    low, high = bootstrap(values.tolist())
    half = 1.96 * values.std(ddof=1) / math.sqrt(400)
    assert (low, high) == (pytest.approx(values.mean() - half, abs=0.01), pytest.approx(values.mean() + half, abs=0.01))


def test_a_difference_of_means() -> None:
    assert of_means([1.0, 2.0, 3.0], [1.0, 2.0, 3.0]) == of_means([5.0, 5.0, 5.0], [5.0, 5.0, 5.0])
    assert of_means([1.0, 2.0], [1.0, 2.0]).noise
    assert of_means([1.0, 1.0, 1.0], [1.1, 0.9, 1.0]).noise
    assert not of_means([1.0, 3.0, 2.0], [1.1, 3.2, 2.1]).noise
    assert of_means([1.0], [9.0]).noise
