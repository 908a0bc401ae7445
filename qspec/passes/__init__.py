"""The passes: one algorithm, one file; the file's name is the name in `apply`.

Files are found, not listed. Importing one never imports torch: the parameters are needed by `qspec check`, the
mathematics only by the compiler. Third-party passes come through the entry-point group "qspec.passes".
"""

from __future__ import annotations

import pkgutil
from importlib import import_module

from qspec.errors import QspecError
from qspec.language.spec import Pass

ENTRY_POINTS = "qspec.passes"
_SUPPORT = {"block", "linear", "outer", "statistics"}  # modules of this package that are not passes


def available(third_party: bool = False) -> dict[str, type[Pass]]:
    """Pass name -> class. With `third_party`, also those that installed packages offer (slower: reads their metadata).

    Raises QspecError where a third-party pass takes a name that exists, or is not a Pass.
    """
    names = [m.name for m in pkgutil.iter_modules(__path__) if m.name not in _SUPPORT]
    passes = {name: _pass_in(f"{__name__}.{name}") for name in sorted(names)}
    if third_party:
        _add_entry_points(passes)
    return passes


def _pass_in(module: str) -> type[Pass]:
    found = [
        value
        for value in vars(import_module(module)).values()
        if isinstance(value, type) and issubclass(value, Pass) and value.__module__ == module
    ]
    if len(found) != 1:
        raise QspecError(f"{module} defines {len(found)} passes", hint="one pass in a file")
    return found[0]


def _add_entry_points(passes: dict[str, type[Pass]]) -> None:
    from importlib.metadata import entry_points

    for point in entry_points(group=ENTRY_POINTS):
        if point.name in passes:
            raise QspecError(
                f"two passes are named {point.name!r}", where=point.value, hint="uninstall one of the packages"
            )
        found = point.load()
        if not (isinstance(found, type) and issubclass(found, Pass)):
            raise QspecError(f"{point.value} is not a qspec Pass", where=f"entry point {point.name}")
        passes[point.name] = found
