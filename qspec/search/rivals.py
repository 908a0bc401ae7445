"""What a search must beat at the same budgets: one scheme everywhere, and the dearest for the first and last blocks.

A layout is dearer than another by the first budget.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from qspec.search.limits import Limit
from qspec.search.space import Layout, Space


def rivals(space: Space, limits: Sequence[Limit]) -> dict[str, Layout]:
    """By name; none where no scheme that is offered everywhere holds the budgets everywhere."""
    uniforms = [layout for choice in space.offered if (layout := space.uniform(choice)) is not None]
    uniform = sorted((layout for layout in uniforms if holds(layout, limits)), key=limits[0].cost)
    if not uniform:
        return {}
    order = evenly(len(space.units))
    return {"uniform": filled(uniform[-1], limits, order), "first and last": first_last(space, limits, uniform)}


def first_last(space: Space, limits: Sequence[Limit], uniform: Sequence[Layout]) -> Layout:
    """The dearest scheme where it fits in the first and last blocks, then in the ones next to them.

    Elsewhere the dearest of the `uniform` layouts that leaves room for both ends; the cheapest where none does.
    """
    order = from_the_ends(space)
    layers = space.plan.shape.layers
    ends = {u for u in order if block_of(space, u) in (0, layers - 1)}
    top = [row[-1] for row in by_cost(limits[0])]
    whole = [
        candidate
        for layout in uniform
        if holds(candidate := tuple(top[u] if u in ends else o for u, o in enumerate(layout)), limits)
    ]
    return filled(whole[-1] if whole else uniform[0], limits, order)


def filled(layout: Layout, limits: Sequence[Limit], order: Sequence[int]) -> Layout:
    """Each unit in this order gets the dearest option that still fits."""
    richer = list(layout)
    costs, ranked = limits[0].costs, by_cost(limits[0])
    for unit in order:
        for option in reversed(ranked[unit]):
            if costs[unit][option] <= costs[unit][richer[unit]]:
                break
            if holds((*richer[:unit], option, *richer[unit + 1 :]), limits):
                richer[unit] = option
                break
    return tuple(richer)


def holds(layout: Layout, limits: Sequence[Limit]) -> bool:
    """Whether every budget does."""
    return all(limit.holds(layout) for limit in limits)


def by_cost(limit: Limit) -> list[list[int]]:
    """For each unit, its options from the cheapest to the dearest."""
    return [sorted(range(len(row)), key=row.__getitem__) for row in limit.costs]


def block_of(space: Space, unit: int) -> int:
    """The block that a unit is in."""
    block = space.units[unit].options[0].modules[0].entry.role.block
    assert block is not None
    return block


def from_the_ends(space: Space) -> list[int]:
    """Units of the first block, the last, the second, and so on."""
    last = space.plan.shape.layers - 1
    nearest = [(min(block, last - block), block > last - block) for block in range(last + 1)]
    return sorted(range(len(space.units)), key=lambda unit: nearest[block_of(space, unit)])


def evenly(count: int) -> list[int]:
    """0 .. count - 1 so that every beginning is spread over the whole: by the digits of the index, reversed."""
    return sorted(range(count), key=lambda i: tuple(_digits(i, count)))


def _digits(index: int, count: int) -> Iterator[int]:
    while count > 1:
        yield index % 2
        index, count = index // 2, -(-count // 2)
