"""Metrics by hand: tiers, drops and standard errors, over the same items."""

from __future__ import annotations

import math

import pytest

from qspec.evaluate.results import accuracy, nelbo, size


@pytest.mark.parametrize(
    ("drop", "name"),
    [
        (-7.0, "better"),
        (0.0, "small"),
        (0.999, "small"),
        (1.0, "medium"),
        (4.0, "medium"),
        (4.001, "large"),
        (100.0, "large"),
        (None, "undefined"),
    ],
)
def test_sizes_at_their_borders(drop: float | None, name: str) -> None:
    assert size(drop) == name


def test_accuracy_is_paired() -> None:
    before = [True, True, False, True]
    after = [True, False, False, True]
    found = accuracy("gsm8k", "arithmetic", "exact_match", before, after)
    assert (found.baseline, found.quantized, found.n) == (0.75, 0.5, 4)
    assert found.drop_percent == pytest.approx(100 / 3)
    assert (found.tier, found.p_value) == ("within noise", 1.0)  # one item of four
    assert found.items == ((1, 1), (1, 0), (0, 0), (1, 1))
    # differences 0, -1, 0, 0: mean -1/4, s^2 = (3/16 + 9/16) / 3 = 1/4, stderr = sqrt(1/4 / 4)
    assert found.stderr == pytest.approx(0.25)
    assert found.baseline_stderr == pytest.approx(math.sqrt(0.75 * 0.25 / 4))
    assert found.quantized_stderr == pytest.approx(0.25)


def test_a_drop_of_one_percent_is_a_medium_loss_whatever_the_rounding() -> None:
    found = accuracy("t", "t", "exact_match", [True] * 1000, [True] * 990 + [False] * 10)
    assert (found.drop_percent, found.tier) == (1.0, "medium")


def test_the_same_drop_is_noise_on_few_items_and_a_loss_on_many() -> None:
    few = accuracy("t", "t", "exact_match", [True] * 25, [True] * 24 + [False])
    many = accuracy("t", "t", "exact_match", [True] * 500, [True] * 480 + [False] * 20)
    assert (few.drop_percent, few.tier) == (4.0, "within noise")
    assert (many.drop_percent, many.tier) == (4.0, "medium")


def test_losses_are_the_interval_relative_to_the_unquantized_model() -> None:
    found = accuracy("t", "t", "exact_match", [True] * 40 + [False] * 40, [True] * 20 + [False] * 60)
    assert found.interval is not None
    low, high = found.interval
    assert found.losses == (pytest.approx(-200 * high), pytest.approx(-200 * low))
    assert found.losses[0] < 50 < found.losses[1]
    text = nelbo("t", "t", [2.0, 2.0], [2.1, 2.3])
    assert text.losses == (pytest.approx(5.0), pytest.approx(15.0))  # of two items, from the one to the other


def test_a_model_that_knew_nothing_has_no_drop() -> None:
    found = accuracy("t", "t", "exact_match", [False] * 8, [False] + [True] * 7)
    assert (found.drop_percent, found.tier, found.losses) == (None, "undefined", None)


def test_a_higher_nelbo_is_a_drop() -> None:
    found = nelbo("wikitext2", "text", [1.0, 3.0], [1.1, 3.1])
    assert found.drop_percent == pytest.approx(5.0)
    assert found.tier == "large"
    assert found.stderr == pytest.approx(0.0, abs=1e-12)  # every sample moved by the same 0.1
    assert found.baseline_stderr == pytest.approx(1.0)  # s^2 = 2, / 2
    assert nelbo("t", "t", [1.0, 3.0], [0.9, 2.9]).tier == "better"
