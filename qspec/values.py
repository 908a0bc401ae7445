"""Immutable values whose classes are quick to define.

To everyone who reads or checks a class, `@value` is `@dataclass(frozen=True)`. A frozen dataclass compiles five methods
of its own when its module is imported, about half a millisecond; the language has fifty such classes, and a whole
`qspec check` may take 0.2 s. Here all classes share their methods.
"""

from __future__ import annotations

from dataclasses import MISSING, FrozenInstanceError, dataclass, field, fields
from typing import Any, NoReturn, TypeVar, dataclass_transform

_T = TypeVar("_T")
LARGEST_SEED = (1 << 32) - 1  # torch's generator takes more and counts it modulo 2^32: two seeds, one result


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def value(cls: type[_T]) -> type[_T]:
    """A frozen dataclass of the class: compared, hashed and shown by its fields, without `__post_init__`.

    Raises TypeError for a field with a default_factory, which the shared `__init__` does not know.
    """
    made: Any = dataclass(init=False, eq=False, repr=False)(cls)
    own = fields(made)
    if any(f.default_factory is not MISSING for f in own):
        raise TypeError(f"{cls.__name__}: a value's field cannot have a default_factory")
    made.__value_names__ = tuple(f.name for f in own)
    made.__value_defaults__ = {f.name: f.default for f in own if f.default is not MISSING}
    made.__value_compared__ = tuple(f.name for f in own if f.compare)
    for name in ("__init__", "__eq__", "__hash__", "__repr__", "__setattr__", "__delattr__"):
        if name not in vars(cls):
            setattr(made, name, vars(_Shared)[name])
    return cls


class _Shared:
    __value_names__: tuple[str, ...]
    __value_defaults__: dict[str, Any]
    __value_compared__: tuple[str, ...]

    def __init__(self, *args: Any, **named: Any) -> None:
        names, state = self.__value_names__, self.__dict__
        state.update(self.__value_defaults__)
        state.update(zip(names, args, strict=False))
        state.update(named)
        if len(args) > len(names) or len(state) != len(names) or any(n not in names[len(args) :] for n in named):
            got = ", ".join([f"{len(args)} by place", *sorted(named)])
            raise TypeError(f"{type(self).__name__} has the fields {', '.join(names)}; given were {got}")

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and _compared(self) == _compared(other)

    def __hash__(self) -> int:
        return hash(_compared(self))

    def __repr__(self) -> str:
        shown = (f"{f.name}={getattr(self, f.name)!r}" for f in fields(self) if f.repr)  # type: ignore[arg-type]
        return f"{type(self).__qualname__}({', '.join(shown)})"

    def __setattr__(self, name: str, _: object) -> NoReturn:
        raise FrozenInstanceError(f"cannot assign to field {name!r}")

    def __delattr__(self, name: str) -> NoReturn:
        raise FrozenInstanceError(f"cannot delete field {name!r}")


def _compared(of: Any) -> tuple[object, ...]:
    return tuple(of.__dict__[name] for name in of.__value_compared__)
