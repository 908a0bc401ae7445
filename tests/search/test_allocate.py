"""The integer program against enumeration."""

from __future__ import annotations

import ctypes
import random
import subprocess
import sys
from collections.abc import Sequence
from itertools import product
from math import sqrt
from typing import Any

import pytest
import scipy.optimize

from qspec.language.budgets import parse_budgets
from qspec.language.spec import Budget
from qspec.search.allocate import Infeasible, allocate
from qspec.search.limits import Limit, find_limits
from qspec.search.refine import BATCH, MeasuredLayout, best, most_lost, neighbours, predicted, refine
from qspec.search.space import Layout
from tests.search.spaces import space_of

BITS = Budget("bits", "4", "bits")


def limit(costs: list[list[int]], most: int) -> Limit:
    from fractions import Fraction

    return Limit(BITS, tuple(map(tuple, costs)), 0, most, Fraction(1))


def enumerated(losses: list[list[float]], limits: list[Limit]) -> float | None:
    """The least loss of all layouts that hold every limit."""
    layouts = product(*(range(len(row)) for row in losses))
    fitting = [predicted(losses, layout) for layout in layouts if all(one.holds(layout) for one in limits)]
    return min(fitting, default=None)


@pytest.mark.parametrize("seed", range(40))
def test_the_optimum_under_several_budgets(seed: int) -> None:
    draw = random.Random(seed)
    sizes = [draw.randint(1, 4) for _ in range(draw.randint(1, 6))]
    losses = [[draw.choice([draw.random(), draw.random() * 1e-5, 0.0]) for _ in range(n)] for n in sizes]
    limits = []
    for _ in range(draw.randint(1, 3)):
        costs = [[draw.randint(1, 50) * draw.choice([1, 4096, 12345]) for _ in range(n)] for n in sizes]
        low, high = sum(map(min, costs)), sum(map(max, costs))
        limits.append(limit(costs, int(draw.uniform(low * 0.95, high))))
    expected = enumerated(losses, limits)
    if expected is None:
        with pytest.raises(Infeasible):
            allocate(losses, limits)
        return
    layout = allocate(losses, limits)
    assert all(one.holds(layout) for one in limits)
    assert predicted(losses, layout) == pytest.approx(expected, rel=1e-9, abs=1e-15)


def test_costs_of_an_8b_model_stay_exact() -> None:
    """A budget that is missed by one bit of 30 thousand million is missed."""
    size = 4096 * 12288
    costs = [[size * b + 16 * (size // 128) for b in (2, 3, 4, 8)] for _ in range(224)]
    losses = [[4.0**-b for b in (2, 3, 4, 8)] for _ in range(224)]
    exact = costs[0][3] * 100 + costs[0][0] * 124
    assert limit(costs, exact).cost(allocate(losses, [limit(costs, exact)])) <= exact
    assert limit(costs, exact - 1).cost(allocate(losses, [limit(costs, exact - 1)])) <= exact - 1


def test_neighbours_hold_the_limits_and_come_in_order() -> None:
    losses = [[0.9, 0.5, 0.1], [0.8, 0.3, 0.0], [0.7, 0.2, 0.1]]
    costs = [[2, 4, 8]] * 3
    one = limit(costs, 12)
    centre: Layout = (1, 1, 1)
    found = neighbours(centre, losses, [one], {centre}, 100)
    by_hand = [
        layout
        for layout in product(range(3), repeat=3)
        if 0 < sum(a != b for a, b in zip(layout, centre, strict=True)) <= 2 and one.holds(layout)
    ]
    assert sorted(found) == sorted(by_hand)
    totals = [predicted(losses, layout) for layout in found]
    assert totals == sorted(totals)


def test_refinement_finds_what_the_prediction_misses() -> None:
    """The truth punishes one pair of choices that the sum does not know of; only the pair's neighbour is measured."""
    losses = [[0.5, 0.1], [0.5, 0.1], [0.5, 0.2]]
    one = limit([[2, 4]] * 3, 10)
    solved = allocate(losses, [one])
    assert solved == (1, 1, 0)

    def measure(layouts: Sequence[Layout]) -> list[Sequence[float]]:
        true = [predicted(losses, layout) + (1.0 if layout[:2] == (1, 1) else 0.0) for layout in layouts]
        return [[loss - 0.3, loss + 0.3] for loss in true]

    measured = refine({"solver": solved, "uniform": (0, 0, 0), "again": solved}, losses, [one], measure, 8)
    assert best(measured).layout in {(1, 0, 1), (0, 1, 1)}
    assert len(measured) == len({m.layout for m in measured}) <= 8
    assert [m.origin for m in measured[:3]] == ["solver", "uniform", "neighbour"]


def test_refinement_ends_where_neighbours_bring_nothing_better() -> None:
    """Of 12 inputs with two choices one batch is measured beside the starts, not the 60 layouts that were allowed."""
    losses = [[0.5, 0.1]] * 12
    one = limit([[2, 4]] * 12, 40)
    solved = allocate(losses, [one])

    def measure(layouts: Sequence[Layout]) -> list[Sequence[float]]:
        return [[predicted(losses, layout) + 0.01 * row for row in range(4)] for layout in layouts]

    measured = refine({"solver": solved, "uniform": (0,) * 12}, losses, [one], measure, 60)
    assert [m.origin for m in measured] == ["solver", "uniform", *["neighbour"] * BATCH]
    assert best(measured).layout == solved


def test_luck_does_not_take_the_solvers_place() -> None:
    """Differences of 4 rows by hand: means of -1, with standard errors of 1.29 and of 0.41."""
    solver = MeasuredLayout((0,), "solver", 0.0, (5.0, 5.0, 5.0, 5.0))
    lucky = MeasuredLayout((1,), "neighbour", 0.0, (1.0, 3.0, 5.0, 7.0))
    better = MeasuredLayout((2,), "neighbour", 0.0, (3.0, 5.0, 4.0, 4.0))
    sure = MeasuredLayout((3,), "neighbour", 0.0, (4.1, 4.1, 4.1, 4.1))
    assert most_lost(lucky, solver) == pytest.approx(-1 + 2 * sqrt(20 / 3) / 2)
    assert best([solver, lucky]) is solver
    assert most_lost(better, solver) == pytest.approx(-1 + 2 * sqrt(2 / 3) / 2)
    assert best([solver, lucky, better]) is better
    assert best([solver, lucky, better, sure]) is sure


def test_one_offer_pins_and_fused_linears_share() -> None:
    space = space_of(
        "offer w3, w8 on blocks[*].*\noffer w8 on blocks[0].*\noffer w3 on blocks[1].attention.k", ["w3", "w8"], 2
    )
    assert [len(unit.options) for unit in space.units] == [1, 1, 1, 1, 1, 2, 2, 2]
    layout = allocate([[0.0] * len(u.options) for u in space.units], find_limits(space, parse_budgets("16 bits")))
    chosen = {role: scheme.name for role, scheme in space.choices(layout).items() if scheme}
    assert {chosen[f"blocks[1].attention.{part}"] for part in "qkv"} == {"w3"}
    assert {name for role, name in chosen.items() if role.startswith("blocks[0]")} == {"w8"}


def test_what_the_solver_prints_is_not_heard(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """HiGHS prints some lines by C's stdio whatever its options say; what is printed before and after stays."""
    space = space_of("offer w3, w8 on blocks[*].*", ["w3", "w8"])
    limits, losses = find_limits(space, parse_budgets("6 bits")), [[1.0, 0.0]] * len(space.units)
    quiet = allocate(losses, limits)
    milp = scipy.optimize.milp

    def loud(*args: Any, **kwargs: Any) -> Any:
        ctypes.CDLL(None).puts(b"degeneracy? not possible to find a constraint")
        return milp(*args, **kwargs)

    monkeypatch.setattr(scipy.optimize, "milp", loud)
    print("before")
    assert allocate(losses, limits) == quiet
    print("after")
    assert capfd.readouterr() == ("before\nafter\n", "")


def test_the_solver_runs_with_standard_output_closed() -> None:
    """As behind `>&-`."""
    code = (
        "import os, scipy.optimize\nos.close(1)\nfrom qspec.search.allocate import _unheard\n"
        "with _unheard():\n    assert scipy.optimize.milp([1.0]).status == 0\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
