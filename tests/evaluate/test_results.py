"""Tiers, drops and standard errors, by hand."""

from __future__ import annotations

import math

import pytest

from qspec.evaluate.results import accuracy, average, nelbo, tier


@pytest.mark.parametrize(
    ("drop", "name"),
    [
        (-7.0, "negligible"),
        (0.0, "negligible"),
        (0.999, "negligible"),
        (1.0, "moderate"),
        (4.0, "moderate"),
        (4.001, "significant"),
        (100.0, "significant"),
        (None, "undefined"),
    ],
)
def test_tiers_at_their_borders(drop: float | None, name: str) -> None:
    assert tier(drop) == name


def test_mean_and_standard_error_by_hand() -> None:
    found = average([2.0, 4.0, 9.0])  # mean 5, squares 9 + 1 + 16 = 26, s^2 = 13
    assert found.mean == 5.0
    assert found.stderr == pytest.approx(math.sqrt(13 / 3))
    assert average([3.0]).stderr == 0


def test_accuracy_is_paired() -> None:
    before = [True, True, False, True]
    after = [True, False, False, True]
    found = accuracy("gsm8k", "arithmetic", "exact_match", before, after)
    assert (found.baseline, found.quantized, found.n) == (0.75, 0.5, 4)
    assert found.drop_percent == pytest.approx(100 / 3)
    assert found.tier == "significant"
    # differences 0, -1, 0, 0: mean -1/4, s^2 = (3/16 + 9/16) / 3 = 1/4, stderr = sqrt(1/4 / 4)
    assert found.stderr == pytest.approx(0.25)
    assert found.baseline_stderr == pytest.approx(math.sqrt(0.75 * 0.25 / 4))
    assert found.quantized_stderr == pytest.approx(0.25)


def test_a_drop_of_one_percent_is_moderate_whatever_the_rounding() -> None:
    found = accuracy("t", "t", "exact_match", [True] * 100, [True] * 99 + [False])
    assert (found.drop_percent, found.tier) == (1.0, "moderate")


def test_a_model_that_knew_nothing_has_no_drop() -> None:
    found = accuracy("t", "t", "exact_match", [False, False], [False, True])
    assert (found.drop_percent, found.tier) == (None, "undefined")


def test_a_higher_nelbo_is_a_drop() -> None:
    found = nelbo("wikitext2", "text", [1.0, 3.0], [1.1, 3.1])
    assert found.drop_percent == pytest.approx(5.0)
    assert found.tier == "significant"
    assert found.stderr == pytest.approx(0.0, abs=1e-12)  # every sample moved by the same 0.1
    assert found.baseline_stderr == pytest.approx(1.0)  # s^2 = 2, / 2
