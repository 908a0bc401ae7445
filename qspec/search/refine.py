"""From the solver's layout to a better one: neighbours of the best so far, measured as whole layouts.

A neighbour differs in one unit, or in two (one gets more, the other less), and holds every budget. Those of the least
predicted loss are measured first, `BATCH` at a time; the best of all becomes the next centre, until `BATCH` neighbours
of a centre bring nothing better.

Layouts are measured on some rows of text, and the least of many measured losses is partly luck. So a layout takes the
solver's place only where it loses less by more than `SURE` standard errors of that difference, row by row.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import fmean, stdev

import numpy as np

from qspec.search.allocate import Losses
from qspec.search.limits import Limit
from qspec.search.space import Layout

BATCH = 8  # layouts measured between two looks at the result, whatever the number of workers
SURE = 2.0  # standard errors: of a dozen layouts that are no better, a few seem so by one

Measure = Callable[[Sequence[Layout]], list[Sequence[float]]]  # of each layout, the loss of every row


@dataclass(frozen=True)
class MeasuredLayout:
    """A layout with its predicted and its measured loss. origin: "solver", a rival's name, or "neighbour"."""

    layout: Layout
    origin: str
    predicted: float
    rows: tuple[float, ...]

    @property
    def loss(self) -> float:
        return fmean(self.rows)


def refine(
    starts: Mapping[str, Layout], losses: Losses, limits: Sequence[Limit], measure: Measure, trials: int
) -> list[MeasuredLayout]:
    """Everything that was measured, in order: `trials` layouts at most, the starts first. starts: by their origin.

    It ends earlier where neighbours of the best were measured and it stayed the best.
    """
    done: dict[Layout, MeasuredLayout] = {}
    origins: dict[Layout, str] = {}
    for name, layout in starts.items():
        origins.setdefault(layout, name)
    batch = list(origins)[:trials]
    searched = next(iter(origins))  # whose neighbours are measured: the solver's beside the starts, so that none waits
    batch += neighbours(searched, losses, limits, batch, min(BATCH, trials - len(batch)))
    while batch:
        for layout, rows in zip(batch, measure(batch), strict=True):
            origin = origins.get(layout, "neighbour")
            done[layout] = MeasuredLayout(layout, origin, predicted(losses, layout), tuple(rows))
        centre = best(list(done.values()))
        if centre.layout == searched:
            break
        searched = centre.layout
        room = min(BATCH, trials - len(done))
        batch = neighbours(centre.layout, losses, limits, done, room)
    return list(done.values())


def best(measured: Sequence[MeasuredLayout]) -> MeasuredLayout:
    """The first, unless another surely loses less: then the surest, and so on from that one."""
    chosen = measured[0]
    while True:
        surest = min(measured, key=lambda layout: most_lost(layout, chosen))
        if most_lost(surest, chosen) >= 0:
            return chosen
        chosen = surest


def most_lost(layout: MeasuredLayout, other: MeasuredLayout) -> float:
    """The mean difference of their losses, and `SURE` standard errors of it added; 0 between equals."""
    differences = [a - b for a, b in zip(layout.rows, other.rows, strict=True)]
    error = stdev(differences) / sqrt(len(differences)) if len(differences) > 1 else 0.0
    return fmean(differences) + SURE * error


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
    layouts: list[Layout] = []
    for place in order.tolist():
        first, second = divmod(place, len(moves) + 1)
        layout = list(centre)
        for index in (first, second) if second < len(moves) else (first,):
            layout[moves[index][0]] = moves[index][1]
        if tuple(layout) not in known:
            layouts.append(tuple(layout))
        if len(layouts) == count:
            break
    return layouts
