"""The verdict: the worst of the evidence with its n, and never that accuracy was kept where nothing could show it.

Whole texts are in verdicts.txt; QSPEC_UPDATE_GOLDENS=1 writes it: read the difference before you commit it.
"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest

from qspec.evaluate.gates import CHANCE, WITHOUT_BASE
from qspec.evaluate.results import Flips, GateResult, Metric, Reference, accuracy, nelbo
from qspec.report import ReportData
from qspec.report.verdict import FEW, SATURATED, undecided, verdict
from tests.report.sample import sample_report

GOLDEN = Path(__file__).parent / "verdicts.txt"


def measured(*metrics: Metric, flips: tuple[Flips, ...] = (), standin: bool = False, **more: object) -> ReportData:
    plain = sample_report()
    model = dataclasses.replace(plain.model, standin=standin)
    return dataclasses.replace(plain, metrics=metrics, flips=flips, model=model, **more)  # type: ignore[arg-type]


def share(task: str, before: int, after: int, n: int, won: int = 0, *, chance: float = 0.0, source: str = "") -> Metric:
    """`before` of n items right, then `after`, of which the first did not have `won`."""
    first = [True] * before + [False] * (n - before)
    kept = min(before, after - won)
    won = after - kept
    second = [True] * kept + [False] * (before - kept) + [True] * won + [False] * (n - before - won)
    return accuracy(task, task, "choice_accuracy" if chance else "exact_match", first, second, source, chance)


def text(change: float, n: int = 64, noise: float = 0.0, source: str = "") -> Metric:
    """A NELBO of 2 that rises by `change`, of n samples whose differences alternate by `noise` around it."""
    after = [2 + change + noise * (-1) ** index for index in range(n)]
    return nelbo("wikitext2", "WikiText-2", [2.0] * n, after, source)


def drifted(moved: float = 0.94, same: int = 12) -> Flips:
    return Flips("gsm8k", (moved,), moved, 0.41, 1460, 48, same, 0.1, 1.0)


CASES = {
    "everything is fine, n is decent": measured(text(0.0, 64, 0.01), share("gsm8k", 920, 918, 1319, won=4)),
    "saturated": measured(share("gsm8k", 48, 48, 48), share("mmlu", 995, 995, 1000)),
    "below chance": measured(share("mmlu", 270, 100, 1000, chance=0.25)),
    "n = 4": measured(share("gsm8k", 3, 3, 4)),
    "mixed evidence": measured(text(0.2, 24), share("mmlu", 48, 48, 48), share("gsm8k", 800, 799, 1000, won=2)),
    "scores alike, texts that differ": measured(
        text(0.0, 64, 0.01), share("gsm8k", 920, 918, 1319, won=4), flips=(drifted(),)
    ),
    "a loss, and texts that differ": measured(share("gsm8k", 920, 700, 1319), flips=(drifted(1.0, 0),)),
    "a small loss": measured(text(0.01, 64, 0.01)),
    "stand-in": measured(
        text(0.2, 24, source="stand-in text"),
        share("gsm8k", 48, 48, 48, source="stand-in arithmetic"),
        share("mmlu", 48, 47, 48, source="stand-in recall"),
        flips=(drifted(),),
        standin=True,
    ),
    "limited": measured(share("gsm8k", 12, 2, 16), limit=16),
    "two copies": measured(
        text(0.0), share("gsm8k", 920, 920, 1319), flips=(Flips("gsm8k", (0.0,), 0.0, 0.0, 1460, 48, 48, 1.0, 1.0),)
    ),
    "gate failed": measured(
        text(0.0, 64, 0.01),
        share("gsm8k", 920, 918, 1319, won=4),
        gates=(
            GateResult("nelbo loss <= 2 %", True, "0.00 %, 95 %: -0.12 to 0.12 on wikitext2, n = 64"),
            GateResult("mmlu loss <= 3 points", False, "not measured"),
        ),
    ),
    "gate passed": measured(text(0.2, 24), gates=(GateResult("nelbo loss <= 12 %", True, "10.00 %, n = 24"),)),
    "nothing was measured": measured(),
    "beside the same schemes only rounded": dataclasses.replace(
        measured(text(0.02, 24)), reference=Reference(4.0, 4.93, (text(3.0, 24),), ())
    ),
}


def test_whole_texts() -> None:
    said = {name: verdict(data) for name, data in CASES.items()}
    found = "\n\n".join(
        "\n".join([f"== {name} ({one.tier})", one.headline, *(f"- {detail}" for detail in one.details)])
        for name, one in said.items()
    )
    if os.environ.get("QSPEC_UPDATE_GOLDENS") == "1":
        GOLDEN.write_text(f"{found}\n")
    assert f"{found}\n" == GOLDEN.read_text()


def test_a_large_nelbo_is_the_verdict_though_all_tasks_are_kept() -> None:
    """The headline that was "Keeps 100.0 % of the unquantized accuracy"."""
    for case in ("mixed evidence", "stand-in"):
        found = verdict(CASES[case])
        assert (found.tier, found.worst) == ("large", CASES[case].metrics[0])
        assert "Keeps" not in found.headline


def test_a_saturated_baseline_shows_no_accuracy_kept_but_a_loss() -> None:
    assert undecided(share("mmlu", 1000, 1000, 1000)) == SATURATED
    assert undecided(share("mmlu", 48, 47, 48)) == SATURATED  # one item: p = 1
    assert undecided(share("mmlu", 48, 40, 48)) is None  # eight: p = 2 / 256
    found = verdict(measured(share("mmlu", 48, 40, 48), text(0.0)))
    assert found.headline.startswith("Large loss: the worst measure is exact match on mmlu, 16.7 % worse (95 %: ")


def test_a_baseline_at_chance_shows_nothing_either_way() -> None:
    """Of 1000 items with four choices, 27 % right: the 95 % interval, from 24.3 %, reaches the 25 % of guessing."""
    for after in (270, 100):
        guess = share("mmlu", 270, after, 1000, chance=0.25)
        assert verdict(measured(guess)).worst is None
        assert undecided(guess) == CHANCE
    assert undecided(share("mmlu", 300, 300, 1000, chance=0.25)) is None  # from 27.2 %
    assert undecided(share("gsm8k", 0, 5, 100)) == CHANCE
    assert undecided(nelbo("t", "t", [0.0, 0.0], [0.1, 0.1])) == WITHOUT_BASE


def test_few_items_show_neither_a_loss_nor_that_there_is_none() -> None:
    """30 of 48 twice leaves a loss of several percent open; 12 more of 16 lost is seen."""
    assert undecided(share("gsm8k", 30, 30, 48)) == FEW
    assert undecided(share("gsm8k", 30, 28, 48)) == FEW
    assert undecided(share("gsm8k", 14, 2, 16)) is None
    assert undecided(text(0.0, 1)) == FEW
    assert undecided(text(0.0, 6, 0.2)) == FEW  # differences of 10 %
    assert undecided(text(0.0, 64, 0.2)) is None
    found = verdict(measured(share("gsm8k", 30, 30, 48), text(0.0)))
    assert found.tier == "within noise"
    assert "Accuracy is undecided." in found.headline
    assert found.details[1] == f"Undecided ({FEW}): exact match on gsm8k, n = 48"


def test_of_what_shows_no_loss_the_weakest_decides() -> None:
    small, large = share("arc_easy", 700, 700, 1000), share("piqa", 4000, 4000, 5000)
    assert small.losses is not None
    assert large.losses is not None
    assert small.losses[1] > large.losses[1]
    assert verdict(measured(large, small)).worst == small


def test_a_nelbo_alone_says_nothing_of_accuracy() -> None:
    assert verdict(measured(text(0.0))).headline.endswith("n = 64. Accuracy was not measured.")


def test_the_same_model_twice_is_within_noise_and_known_damage_is_not() -> None:
    """What changes with the damage: tier, worst measure, trajectories."""
    damaged = measured(text(0.05), share("gsm8k", 920, 800, 1319), flips=(drifted(),))
    same, other = verdict(CASES["two copies"]), verdict(damaged)
    assert (same.tier, other.tier) == ("within noise", "large")
    assert "0 of 48 texts differ" in same.headline
    assert same.details[1] == "Trajectories, at worst: no commit moved on gsm8k"
    assert other.worst == damaged.metrics[1]


def test_a_metric_of_no_items_is_refused() -> None:
    with pytest.raises(ValueError, match="a metric of 0 items"):
        dataclasses.replace(share("t", 1, 1, 2), n=0)
    with pytest.raises(ValueError, match="shares must be from 0 to 1"):
        dataclasses.replace(share("t", 1, 1, 2), baseline=1.5)
