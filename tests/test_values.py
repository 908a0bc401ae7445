"""`@value` against `@dataclass(frozen=True)`, which it stands for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import FrozenInstanceError, dataclass, field, fields, replace
from typing import Any

import pytest

from qspec.values import value


@value
class Point:
    x: int
    y: int = 2
    note: str = field(default="", compare=False, repr=False)


@value
class Solid(Point):
    z: int = 3


def frozen() -> tuple[Any, Any]:
    """The same two classes as the standard library makes them."""

    @dataclass(frozen=True)
    class Point:
        x: int
        y: int = 2
        note: str = field(default="", compare=False, repr=False)

    @dataclass(frozen=True)
    class Solid(Point):
        z: int = 3

    return Point, Solid


@pytest.mark.parametrize("which", [0, 1])
def test_it_behaves_as_a_frozen_dataclass(which: int) -> None:
    ours, theirs = (Point, Solid)[which], frozen()[which]
    for make in (ours, theirs):
        one, same, other = make(1, note="a"), make(x=1, y=2), make(1, 3)
        assert one == same != other
        assert hash(one) == hash(same) == hash((1, 2, 3)[: 2 + which])
        assert (one.x, one.y, one.note) == (1, 2, "a")
        assert replace(one, y=7) == make(1, 7)
        assert [f.name for f in fields(one)] == ["x", "y", "note", "z"][: 3 + which]
        assert repr(one).endswith(("Point(x=1, y=2)", "Solid(x=1, y=2, z=3)")[which])
        assert make.__match_args__ == ("x", "y", "note", "z")[: 3 + which]
        with pytest.raises(FrozenInstanceError, match="cannot assign to field 'x'"):
            one.x = 5
        with pytest.raises(FrozenInstanceError, match="cannot delete field 'x'"):
            del one.x


def test_a_value_of_another_class_is_never_equal() -> None:
    assert Point(1) != Solid(1)
    assert Point(1) != (1, 2)


WRONG: list[Callable[[Any], object]] = [
    lambda make: make(),
    lambda make: make(1, 2, "", 4),
    lambda make: make(1, x=1),
    lambda make: make(1, w=1),
    lambda make: make(y=1, w=2),
]


@pytest.mark.parametrize("call", WRONG)
def test_wrong_arguments(call: Callable[[Any], object]) -> None:
    for make in (Point, frozen()[0]):
        with pytest.raises(TypeError):
            call(make)


def test_a_default_factory_is_refused() -> None:
    with pytest.raises(TypeError, match="cannot have a default_factory"):

        @value
        class Bag:
            items: list[int] = field(default_factory=list)
