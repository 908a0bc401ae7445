"""Gates against measured losses: in percent, in points, at their limits, and what can never pass."""

from __future__ import annotations

import pytest

from qspec.evaluate.gates import judge
from qspec.evaluate.results import Metric, accuracy, nelbo
from qspec.language.spec import FileText, Gate, NamedText


def share(task: str, before: int, after: int, n: int = 1000, chance: float = 0.0) -> Metric:
    rights = ([True] * right + [False] * (n - right) for right in (before, after))
    return accuracy(task, task, "exact_match", *rights, chance=chance)


TEXT = nelbo("wikitext2", "WikiText-2", [2.0, 4.0], [2.06, 4.06])  # 0.06 more on 3: 2 %


@pytest.mark.parametrize(
    ("gate", "passed"),
    [
        (Gate("nelbo", 2, "%"), True),  # at the limit
        (Gate("nelbo", 1.99, "%"), False),
        (Gate("nelbo", 2, "%", NamedText("wikitext2")), True),
        (Gate("gsm8k", 3, "points"), True),  # 70 to 67 % are 3 points, and 4.3 %
        (Gate("gsm8k", 2.9, "points"), False),
        (Gate("gsm8k", 4, "%"), False),
        (Gate("gsm8k", 4.3, "%"), True),
    ],
)
def test_a_gate_at_its_limit(gate: Gate, passed: bool) -> None:
    (found,) = judge([gate], [TEXT, share("gsm8k", 700, 670)])
    assert found.passed is passed


def test_what_was_found_has_its_interval_and_n() -> None:
    text, task = judge(
        [Gate("nelbo", 1, "%"), Gate("gsm8k", 5, "points")], [TEXT, share("gsm8k", 700, 670), share("mmlu", 1, 0)]
    )
    assert str(text) == "Gate failed: nelbo loss <= 1 % (2.00 %, 95 %: 2.00 to 2.00 on wikitext2, n = 2)"
    # 30 of 1000 lost and none won: the plain interval is 3 -+ 1.96 sqrt(3 * 97 / 1000) = 1.94 to 4.06 points
    assert task.found == "3.00 points, 95 %: 1.92 to 4.09 on gsm8k, n = 1000"


def test_a_nelbo_without_a_text_is_the_worst_of_all_texts() -> None:
    other = nelbo("x.txt", "x.txt", [2.0, 4.0], [2.3, 4.3])
    worst, own = judge([Gate("nelbo", 5, "%"), Gate("nelbo", 5, "%", NamedText("wikitext2"))], [TEXT, other])
    assert (worst.passed, own.passed) == (False, True)
    assert "on x.txt" in worst.found
    (named,) = judge([Gate("nelbo", 5, "%", FileText("x.txt"))], [TEXT, other])
    assert not named.passed


def test_what_shows_nothing_passes_no_gate() -> None:
    """Guessing loses nothing; a task that was not run neither."""
    guess = share("mmlu", 270, 270, chance=0.25)
    at_chance, absent = judge([Gate("mmlu", 3, "points"), Gate("gsm8k", 3, "points")], [guess])
    assert str(at_chance) == "Gate failed: mmlu loss <= 3 points (the unquantized model is at chance on mmlu, n = 1000)"
    assert str(absent) == "Gate failed: gsm8k loss <= 3 points (not measured)"


def test_a_gain_passes() -> None:
    (found,) = judge([Gate("gsm8k", 0, "%")], [share("gsm8k", 700, 720)])
    assert found.passed
