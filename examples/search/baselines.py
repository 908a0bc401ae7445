"""What a search must beat at the same budget: one scheme everywhere, and 8 bits for the first and last blocks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from qspec.search.limits import Limit
from qspec.search.space import Layout, Space


def by_cost(limit: Limit) -> list[list[int]]:
    """For each unit, its options from the cheapest to the dearest."""
    return [sorted(range(len(row)), key=row.__getitem__) for row in limit.costs]


def uniform(space: Space, limit: Limit) -> Layout:
    """The dearest scheme that fits everywhere; what is left goes to units spread evenly over the depth."""
    layouts = [layout for choice in space.offered if (layout := space.uniform(choice)) is not None]
    base = max((layout for layout in layouts if limit.holds(layout)), key=limit.cost)
    return filled(base, limit, evenly(len(space.units)))


def first_last(space: Space, limit: Limit) -> Layout:
    """The dearest scheme where it fits in the first and last blocks, then in the ones next to them, on the dearest base
    that leaves room for both ends; on the cheapest where none does.
    """
    order = from_the_ends(space)
    per_block = len(space.units) // space.plan.shape.layers
    layouts = [layout for choice in space.offered if (layout := space.uniform(choice)) is not None]
    fitting = sorted((layout for layout in layouts if limit.holds(layout)), key=limit.cost)
    top = [row[-1] for row in by_cost(limit)]
    ends = set(order[: 2 * per_block])
    whole = [
        candidate
        for layout in fitting
        if limit.holds(candidate := tuple(top[u] if u in ends else o for u, o in enumerate(layout)))
    ]
    return filled(whole[-1] if whole else fitting[0], limit, order)


def filled(layout: Layout, limit: Limit, order: Sequence[int]) -> Layout:
    """Each unit in this order gets the dearest option that still fits."""
    found = list(layout)
    for unit in order:
        for option in reversed(by_cost(limit)[unit]):
            if limit.costs[unit][option] <= limit.costs[unit][found[unit]]:
                break
            changed = (*found[:unit], option, *found[unit + 1 :])
            if limit.holds(changed):
                found[unit] = option
                break
    return tuple(found)


def from_the_ends(space: Space) -> list[int]:
    """Units of the first block, the last, the second, and so on."""
    layers, per_block = space.plan.shape.layers, len(space.units) // space.plan.shape.layers
    blocks = [b for pair in zip(range(layers), reversed(range(layers)), strict=True) for b in pair]
    return [b * per_block + u for b in dict.fromkeys(blocks) for u in range(per_block)]


def evenly(count: int) -> list[int]:
    """0 .. count - 1 so that every beginning is spread over the whole: by the digits of the index, reversed."""
    return sorted(range(count), key=lambda i: tuple(_digits(i, count)))


def _digits(index: int, count: int) -> Iterator[int]:
    while count > 1:
        yield index % 2
        index, count = index // 2, -(-count // 2)
