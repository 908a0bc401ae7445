"""The layouts that a search must beat: by hand, on small models."""

from __future__ import annotations

from qspec.language.budgets import parse_budgets
from qspec.search.limits import find_limits
from qspec.search.rivals import evenly, from_the_ends, holds, rivals
from tests.search.spaces import space_of


def shown(layout: tuple[int, ...]) -> str:
    """Four units a block: q/k/v, o, gate/up, down."""
    return " ".join("".join(map(str, layout[start : start + 4])) for start in range(0, len(layout), 4))


def test_what_is_left_of_the_budget_is_spread_or_goes_to_the_ends() -> None:
    """w3 is 3.106 bits and w8 8.106, so 6.06 bits hold 0.59 of the weights in w8: two ends of six blocks, and more."""
    space = space_of("offer w3, w8 on blocks[*].*", ["w3", "w8"])
    limits = find_limits(space, parse_budgets("6.06 bits"))
    found = rivals(space, limits)
    assert list(found) == ["uniform", "first and last"]
    assert shown(found["first and last"]).split()[:2] == ["1111", "1111"]
    assert shown(found["first and last"]).split()[-1] == "1111"
    assert shown(found["first and last"]).split()[3] == "0000"
    assert all("1" in block and "0" in block for block in shown(found["uniform"]).split())
    for layout in found.values():
        assert holds(layout, limits)
        one_more = [(*layout[:u], 1, *layout[u + 1 :]) for u, option in enumerate(layout) if option == 0]
        assert not any(holds(more, limits) for more in one_more)


def test_every_budget_holds() -> None:
    space = space_of("offer w3, w8 on blocks[*].*", ["w3", "w8"])
    (bits, size) = limits = find_limits(space, parse_budgets("8.2 bits, 3 MiB"))
    assert bits.holds((1,) * 24)
    assert not size.holds((1,) * 24)
    assert all(holds(layout, limits) for layout in rivals(space, limits).values())


def test_no_rival_where_no_scheme_fits_everywhere() -> None:
    space = space_of("offer w8 on blocks[0].*\noffer w3 on blocks[1].*", ["w3", "w8"], layers=2)
    assert not rivals(space, find_limits(space, parse_budgets("3 bits")))


def test_every_beginning_of_an_order_is_spread() -> None:
    assert evenly(1) == [0]
    assert evenly(4) == [0, 2, 1, 3]
    assert evenly(8) == [0, 4, 2, 6, 1, 5, 3, 7]


def test_from_the_ends_inwards() -> None:
    space = space_of("offer w3, w8 on blocks[*].*", ["w3", "w8"], layers=3)
    assert from_the_ends(space) == [0, 1, 2, 3, 8, 9, 10, 11, 4, 5, 6, 7]
