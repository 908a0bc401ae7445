"""The passes: one algorithm, one file; the file's name is the name in `apply`.

Files are found, not listed. Importing one never imports torch: the parameters are needed by `qspec check`, the
mathematics only by the compiler. Third-party passes come through the entry-point group "qspec.passes".
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from qspec.errors import QspecError
from qspec.language.spec import Pass

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

ENTRY_POINTS = "qspec.passes"
_SUPPORT = {"__init__", "block", "linear", "outer", "statistics"}  # modules of this package that are not passes


class Available(Mapping[str, type[Pass]]):
    """Pass name -> class, those of installed packages after our own. A class is imported when it is asked for; other
    packages are only looked at for a name that is not ours or to name them all, since reading their metadata takes
    longer than a whole `qspec check`.

    Raises QspecError where a file or an entry point does not hold one Pass, or two passes have one name.
    """

    def __getitem__(self, name: str) -> type[Pass]:
        if name in _built_in():
            return _pass_in(f"{__name__}.{name}")
        point = _third_party()[name]
        found = point.load()
        if not (isinstance(found, type) and issubclass(found, Pass)):
            raise QspecError(f"{point.value} is not a qspec Pass", where=f"entry point {point.name}")
        return found

    def __iter__(self) -> Iterator[str]:
        return iter((*_built_in(), *_third_party()))

    def __len__(self) -> int:
        return len(_built_in()) + len(_third_party())


def available() -> Available:
    """Every pass that a recipe can name."""
    return Available()


@lru_cache(maxsize=1)
def _built_in() -> tuple[str, ...]:
    return tuple(sorted(file.stem for file in Path(__file__).parent.glob("*.py") if file.stem not in _SUPPORT))


@lru_cache(maxsize=1)
def _third_party() -> dict[str, EntryPoint]:
    from importlib.metadata import entry_points

    found: dict[str, EntryPoint] = {}
    for point in sorted(entry_points(group=ENTRY_POINTS), key=lambda point: point.name):
        if point.name in _built_in() or point.name in found:
            raise QspecError(
                f"two passes are named {point.name!r}", where=point.value, hint="uninstall one of the packages"
            )
        found[point.name] = point
    return found


def _pass_in(module: str) -> type[Pass]:
    found = [
        value
        for value in vars(import_module(module)).values()
        if isinstance(value, type) and issubclass(value, Pass) and value.__module__ == module
    ]
    if len(found) != 1:
        raise QspecError(f"{module} defines {len(found)} passes", hint="one pass in a file")
    return found[0]
