"""From the solver's layout to a better one: neighbours of the best so far, measured as whole layouts.

A neighbour differs in one unit, or in two (one gets more, the other less), and holds every budget. Those of the least
predicted loss are measured first, `BATCH` at a time; the best of all becomes the next centre.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass

import numpy as np

from qspec.search.allocate import Losses
from qspec.search.limits import Limit
from qspec.search.space import Layout

BATCH = 8  # layouts measured between two looks at the result, whatever the number of workers

Measure = Callable[[Sequence[Layout]], list[float]]


@dataclass(frozen=True)
class Measured:
    """A layout with its predicted and its measured loss."""

    layout: Layout
    predicted: float
    loss: float


def refine(
    starts: Sequence[Layout], losses: Losses, limits: Sequence[Limit], measure: Measure, trials: int
) -> list[Measured]:
    """Everything that was measured, in order: `trials` layouts at most, the starts first."""
    done: dict[Layout, Measured] = {}
    batch = list(dict.fromkeys(starts))[:trials]
    while batch:
        for layout, loss in zip(batch, measure(batch), strict=True):
            done[layout] = Measured(layout, predicted(losses, layout), loss)
        centre = best(list(done.values()))
        room = min(BATCH, trials - len(done))
        batch = neighbours(centre.layout, losses, limits, done, room)
    return list(done.values())


def best(measured: Sequence[Measured]) -> Measured:
    """The least loss; of equals the one measured first."""
    return min(measured, key=lambda one: one.loss)


def predicted(losses: Losses, layout: Layout) -> float:
    """The sum of what each unit's option loses alone."""
    return sum(row[index] for row, index in zip(losses, layout, strict=True))


def neighbours(
    centre: Layout, losses: Losses, limits: Sequence[Limit], known: Container[Layout], count: int
) -> list[Layout]:
    """At most `count` layouts near the centre, not `known` yet, that hold every limit; least predicted loss first."""
    moves = [(u, o) for u, row in enumerate(losses) for o in range(len(row)) if o != centre[u]]
    if not moves or count < 1:
        return []
    change = np.array([losses[u][o] - losses[u][centre[u]] for u, o in moves])
    unit = np.array([u for u, _ in moves])
    # Row i, column j < i: both moves; the last column: the move alone.
    total = np.concatenate([change[:, None] + change[None, :], change[:, None]], axis=1)
    allowed = np.concatenate(
        [np.tril(unit[:, None] != unit[None, :], -1), np.ones((len(moves), 1), dtype=bool)], axis=1
    )
    for limit in limits:
        extra = np.array([limit.costs[u][o] - limit.costs[u][centre[u]] for u, o in moves], dtype=np.int64)
        both = np.concatenate([extra[:, None] + extra[None, :], extra[:, None]], axis=1)
        allowed &= both <= limit.most - limit.cost(centre)
    places = np.flatnonzero(allowed)
    order = places[np.argsort(total.reshape(-1)[places], kind="stable")]
    found: list[Layout] = []
    for place in order.tolist():
        first, second = divmod(place, len(moves) + 1)
        layout = list(centre)
        for index in (first, second) if second < len(moves) else (first,):
            layout[moves[index][0]] = moves[index][1]
        if tuple(layout) not in known:
            found.append(tuple(layout))
        if len(found) == count:
            break
    return found
