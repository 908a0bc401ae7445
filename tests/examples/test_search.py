"""examples/search: what found layouts are compared with, and the arithmetic of a whole model's probes."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from qspec.language.budgets import parse_budgets
from qspec.search.limits import find_limits
from tests.examples.conftest import scripts
from tests.search.spaces import space_of


@pytest.fixture(scope="module")
def searching() -> Iterator[SimpleNamespace]:
    with scripts("search", "baselines") as found:
        yield found


def test_baselines_fill_the_budget(searching: SimpleNamespace) -> None:
    """Six blocks of two schemes, 2.5 and 8 bits or so: the ends first, or every other unit."""
    space = space_of("offer w2g32, w8 on blocks[*].*", ["w2g32", "w8"])
    whole = {f"blocks[{b}]": 4 for b in (0, 5)}
    bits = space.planned(tuple(int(u.site[:9] in whole) for u in space.units)).bits_per_weight
    (limit,) = find_limits(space, parse_budgets(f"{bits + 1e-6:.6f} bits"))
    layout = searching.baselines.first_last(space, limit)
    assert layout == (1,) * 4 + (0,) * 16 + (1,) * 4
    spread = searching.baselines.uniform(space, limit)
    assert limit.holds(spread)
    by_block = [sum(spread[4 * b : 4 * b + 4]) for b in range(6)]
    assert max(by_block) - min(by_block) <= 2
    (exact,) = find_limits(space, parse_budgets("2.5 bits"))
    assert searching.baselines.uniform(space, exact) == (0,) * 24


def test_every_beginning_is_spread(searching: SimpleNamespace) -> None:
    assert searching.baselines.evenly(8) == [0, 4, 2, 6, 1, 5, 3, 7]
    assert sorted(searching.baselines.evenly(24)) == list(range(24))
