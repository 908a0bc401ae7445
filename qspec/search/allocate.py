"""The layout of least predicted loss within every budget, by integer programming (HiGHS, through scipy).

    minimise  sum_u,o  l_uo x_uo    subject to    sum_o x_uo = 1 for each unit u,
                                                  sum_u,o  c_uo x_uo + fixed <= most for each budget,   x_uo in {0, 1}

The solver computes in floating point; what it returns is checked in integers, and a budget that it overran by its
tolerance is tightened by as much and solved again.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from math import gcd

import numpy as np

from qspec.errors import InputError, NumericsError
from qspec.search.limits import Limit
from qspec.search.space import Layout

Losses = Sequence[Sequence[float]]  # for each unit, of each option
SCALE = 1e3  # of the largest loss: the absolute gap of 1e-6 is then 1e-9 of it; at more, HiGHS repairs what it rounds
TIGHTENED = 20  # times that a budget may be tightened


class Infeasible(InputError):  # noqa: N818 - read as a statement: `except Infeasible`
    """No layout holds every budget."""


def allocate(losses: Losses, limits: Sequence[Limit], gap: float = 0.0) -> Layout:
    """The best layout. Raises Infeasible, naming the smallest budget that can be held, where there is none."""
    layout = _solve(losses, limits, [limit.most for limit in limits], gap)
    if layout is None:
        raise Infeasible(_why(limits), hint="raise the budget, or offer cheaper choices")
    return layout


def _solve(losses: Losses, limits: Sequence[Limit], most: list[int], gap: float) -> Layout | None:
    for _ in range(TIGHTENED):
        layout = _milp(losses, limits, most, gap)
        over = [0 if layout is None else max(0, limit.cost(layout) - limit.most) for limit in limits]
        if not any(over):
            return layout
        most = [m - o for m, o in zip(most, over, strict=True)]
    raise NumericsError("the integer program's budgets do not hold in exact arithmetic")


def _milp(losses: Losses, limits: Sequence[Limit], most: Sequence[int], gap: float) -> Layout | None:
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import csr_array

    sizes = [len(row) for row in losses]
    starts = np.concatenate([[0], np.cumsum(sizes)])
    objective = np.array([loss for row in losses for loss in row], dtype=np.float64)
    largest = float(np.abs(objective).max(initial=0.0))
    one_each = csr_array(
        (np.ones(starts[-1]), (np.repeat(np.arange(len(sizes)), sizes), np.arange(starts[-1]))),
        shape=(len(sizes), starts[-1]),
    )
    constraints = [LinearConstraint(one_each, 1, 1)]
    for limit, bound in zip(limits, most, strict=True):
        # Above the least that every layout costs, in steps of what they can differ by: small numbers, exact as floats.
        lows = [min(row) for row in limit.costs]
        extra = [c - low for row, low in zip(limit.costs, lows, strict=True) for c in row]
        step = gcd(*extra) or 1
        room = (bound - limit.fixed - sum(lows)) // step
        if room < 0:
            return None
        constraints.append(LinearConstraint(np.array([[e // step for e in extra]], dtype=np.float64), -np.inf, room))
    with _unheard():
        result = milp(
            objective * (SCALE / (largest or 1.0)),
            integrality=np.ones(starts[-1]),
            bounds=Bounds(0, 1),
            constraints=constraints,
            options={"mip_rel_gap": gap},
        )
    if result.x is None:
        if result.status == 2:  # infeasible
            return None
        raise NumericsError(f"the integer program was not solved: {result.message}")
    return tuple(int(np.argmax(result.x[a:b])) for a, b in pairwise(starts))


@contextmanager
def _unheard() -> Iterator[None]:
    """While it lasts, standard output goes nowhere: HiGHS prints some lines whatever its options say."""
    try:
        kept = os.dup(1)
    except OSError:  # closed by the caller: there is nothing to keep clean
        yield
        return
    sys.stdout.flush()
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.close(nowhere)
    try:
        yield
    finally:
        ctypes.CDLL(None).fflush(None)  # what C has buffered would be printed later
        os.dup2(kept, 1)
        os.close(kept)


def _why(limits: Sequence[Limit]) -> str:
    """One sentence: which budget no layout holds, or that they cannot be held together."""
    alone = [limit for limit in limits if limit.least > limit.most]
    if alone:
        return "; ".join(
            f"no layout holds a budget of {limit.budget}: the smallest feasible one is {limit.shown(limit.least)}"
            for limit in alone
        )
    budgets = " and ".join(str(limit.budget) for limit in limits)
    smallest = [f"{limit.budget} would have to be {limit.shown(least)}" for limit, least in _with_the_others(limits)]
    return f"no layout holds {budgets} together: {', or '.join(smallest)}"


def _with_the_others(limits: Sequence[Limit]) -> list[tuple[Limit, int]]:
    """For each budget the least that a layout costs which holds all others; without those that have none."""
    least = []
    for limit in limits:
        others = [other for other in limits if other is not limit]
        costs = [[float(c - min(row)) for c in row] for row in limit.costs]
        best = _solve(costs, others, [other.most for other in others], 0.0)
        if best is not None:
            least.append((limit, limit.cost(best)))
    return least
