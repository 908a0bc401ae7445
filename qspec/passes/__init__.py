"""The passes: one algorithm, one file; the file's name is the name in `apply`.

What a recipe can say of them is `qspec.passes.parameters`, which imports no torch. Third-party passes come through the
entry-point group "qspec.passes".
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from importlib.metadata import EntryPoint, entry_points

from qspec.errors import QspecError
from qspec.language.spec import Pass
from qspec.passes import parameters

ENTRY_POINTS = "qspec.passes"
BUILT_IN: Mapping[str, type[Pass]] = {
    cls.algorithm.removeprefix(f"{__name__}."): cls
    for _, cls in sorted(vars(parameters).items())
    if isinstance(cls, type) and issubclass(cls, Pass) and cls.algorithm
}


class Available(Mapping[str, type[Pass]]):
    """Pass name -> class, those of installed packages after our own. Other packages are only looked at for a name that
    is not ours or to name them all, since reading their metadata takes longer than a whole `qspec check`.

    Raises QspecError where an entry point does not hold a Pass, or two passes have one name.
    """

    def __getitem__(self, name: str) -> type[Pass]:
        if name in BUILT_IN:
            return BUILT_IN[name]
        point = _third_party()[name]
        loaded = point.load()
        if not (isinstance(loaded, type) and issubclass(loaded, Pass)):
            raise QspecError(f"{point.value} is not a qspec Pass", where=f"entry point {point.name}")
        return loaded

    def __iter__(self) -> Iterator[str]:
        return iter((*BUILT_IN, *_third_party()))

    def __len__(self) -> int:
        return len(BUILT_IN) + len(_third_party())


def available() -> Available:
    """Every pass that a recipe can name."""
    return Available()


@cache
def _third_party() -> dict[str, EntryPoint]:
    points: dict[str, EntryPoint] = {}
    for point in sorted(entry_points(group=ENTRY_POINTS), key=lambda point: point.name):
        if point.name in BUILT_IN or point.name in points:
            raise QspecError(
                f"two passes are named {point.name!r}", where=point.value, hint="uninstall one of the packages"
            )
        points[point.name] = point
    return points
