"""The verdict: the worst of the evidence with its n, and never that accuracy was kept where nothing could show it."""

from __future__ import annotations

import dataclasses
import math

import pytest

from qspec.evaluate.results import Metric, accuracy, nelbo, wilson
from qspec.report import ReportData
from qspec.report.verdict import CHANCE, FEW, NOISY, SATURATED, WITHOUT_BASE, undecided, verdict
from tests.report.sample import sample_report

BITS = "Bits per weight: 4.43 in the blocks, 5.02 in the whole model"


def measured(*metrics: Metric) -> ReportData:
    return dataclasses.replace(sample_report(), metrics=metrics)


def share(task: str, before: int, after: int, n: int, metric: str = "exact_match", chance: float = 0.0) -> Metric:
    """`before` of n items right, then `after`."""
    own = ([True] * right + [False] * (n - right) for right in (before, after))
    return accuracy(task, task, metric, *own, chance=chance)


def text(change: float, n: int = 64, noise: float = 0.0) -> Metric:
    """A NELBO of 2 that rises by `change`, of n samples whose differences alternate by `noise` around it."""
    after = [2 + change + noise * (-1) ** index for index in range(n)]
    return nelbo("wikitext2", "WikiText-2", [2.0] * n, after)


def test_a_significant_nelbo_is_the_verdict_though_all_tasks_are_kept() -> None:
    """The headline that was "Keeps 100.0 % of the unquantized accuracy"."""
    found = verdict(measured(text(0.2, 24), share("mmlu", 48, 48, 48), share("gsm8k", 48, 48, 48)))
    assert found.headline == "Significant loss: the worst measure is NELBO on wikitext2, 10.0 % worse, n = 24."
    assert found.tier == "significant"
    assert found.details == (BITS, f"Undecided ({SATURATED}): exact match on mmlu, gsm8k, n = 48")
    assert "Keeps" not in found.headline


def test_a_significant_nelbo_is_the_verdict_though_tasks_that_could_show_a_loss_do_not() -> None:
    found = verdict(measured(text(0.2), share("gsm8k", 800, 800, 1000)))
    assert found.headline.startswith("Significant loss: the worst measure is NELBO on wikitext2, 10.0 % worse, n = 64.")
    assert found.details == (BITS,)


def test_a_saturated_baseline_shows_no_accuracy_kept() -> None:
    for right in (1000, 995):
        found = verdict(measured(share("mmlu", right, right, 1000)))
        assert (found.headline, found.tier, found.worst) == (
            "Undecided: nothing that was measured can show a loss.",
            "undefined",
            None,
        )
        assert found.details[1] == f"Undecided ({SATURATED}): exact match on mmlu, n = 1000"


def test_a_saturated_baseline_shows_a_loss() -> None:
    found = verdict(measured(share("mmlu", 48, 47, 48), text(0.0)))
    assert found.headline == "Moderate loss: the worst measure is exact match on mmlu, 2.1 % worse, n = 48."


def test_a_baseline_at_chance_shows_nothing_either_way() -> None:
    """Of 1000 items with four choices, 27 % right: the 95 % interval, from 24.3 %, reaches the 25 % of guessing."""
    for after in (270, 100):
        guess = share("mmlu", 270, after, 1000, "choice_accuracy", 0.25)
        found = verdict(measured(guess))
        assert found.headline == "Undecided: nothing that was measured can show a loss."
        assert found.details[1] == f"Undecided ({CHANCE}): rated choices on mmlu, n = 1000"
    assert undecided(share("mmlu", 300, 300, 1000, "choice_accuracy", 0.25)) is None  # from 27.2 %
    assert undecided(share("gsm8k", 0, 5, 100)) == CHANCE


def test_small_n_shows_no_accuracy_kept() -> None:
    """One of 99 right answers is more than 1 % of them; one of 100 is not."""
    assert undecided(share("gsm8k", 99, 99, 150)) == FEW
    assert undecided(share("gsm8k", 100, 100, 150)) is None
    found = verdict(measured(share("gsm8k", 30, 30, 48), text(0.001)))
    assert found.headline == (
        "Negligible loss: the worst measure is NELBO on wikitext2, 0.1 % worse, n = 64. Accuracy is undecided."
    )
    assert found.details == (BITS, f"Undecided ({FEW}): exact match on gsm8k, n = 48")


def test_everything_is_fine_with_decent_n() -> None:
    found = verdict(measured(text(0.002), share("gsm8k", 800, 796, 1000), share("arc_easy", 1500, 1510, 2000)))
    assert found.headline == "Negligible loss: the worst measure is exact match on gsm8k, 0.5 % worse, n = 1000."
    assert (found.tier, found.details) == ("negligible", (BITS,))


def test_the_worst_may_be_better_or_unchanged() -> None:
    worst = "Negligible loss: the worst measure is exact match on gsm8k,"
    assert verdict(measured(share("gsm8k", 800, 804, 1000))).headline == f"{worst} 0.5 % better, n = 1000."
    assert verdict(measured(share("gsm8k", 800, 800, 1000))).headline == f"{worst} unchanged, n = 1000."
    small = share("gsm8k", 8000, 7999, 10000)
    assert verdict(measured(small)).headline == f"{worst} less than 0.1 % worse, n = 10000."


def test_a_nelbo_alone_says_nothing_of_accuracy() -> None:
    assert verdict(measured(text(0.001))).headline.endswith("n = 64. Accuracy was not measured.")


def test_a_nelbo_that_its_standard_error_hides_is_undecided() -> None:
    """16 differences of +-0.05 have a standard error of 0.05 sqrt(16 / 15) / 4 = 0.0129; twice that is 1.3 % of 2."""
    noisy = text(0.0, 16, 0.05)
    assert noisy.stderr == pytest.approx(0.05 * math.sqrt(16 / 15) / 4)
    assert undecided(noisy) == NOISY
    assert undecided(text(0.0, 1)) == NOISY
    assert undecided(text(0.0, 16, 0.03)) is None  # 0.8 %
    assert undecided(nelbo("t", "t", [0.0, 0.0], [0.1, 0.1])) == WITHOUT_BASE


def test_nothing_was_measured() -> None:
    found = verdict(measured())
    assert (found.headline, found.tier, found.details) == ("Quality was not measured.", "undefined", (BITS,))


def test_wilsons_interval() -> None:
    """48 of 48: 1 / (1 + z^2 / 48) = 0.9259. 5 of 10: 0.2366 to 0.7634, as in the literature."""
    assert wilson(1.0, 48) == (pytest.approx(1 / (1 + 1.959964**2 / 48)), 1.0)
    assert wilson(0.5, 10) == (pytest.approx(0.2366, abs=1e-4), pytest.approx(0.7634, abs=1e-4))
    assert wilson(0.0, 48) == (0.0, pytest.approx(1 - 0.92590, abs=1e-4))


def test_a_metric_of_no_items_is_refused() -> None:
    with pytest.raises(ValueError, match="a metric of 0 items"):
        dataclasses.replace(share("t", 1, 1, 2), n=0)
    with pytest.raises(ValueError, match="shares must be from 0 to 1"):
        dataclasses.replace(share("t", 1, 1, 2), baseline=1.5)
