"""The modules of `codegen/device`, imported as a package of their own."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from types import ModuleType

from qspec import resources

PACKAGE = "qspec_device"


def device_module(name: str) -> ModuleType:
    """Such as `unpack`."""
    if PACKAGE not in sys.modules:
        folder = resources.codegen() / "device"
        spec = importlib.util.spec_from_file_location(
            PACKAGE, folder / "__init__.py", submodule_search_locations=[str(folder)]
        )
        assert spec is not None
        sys.modules[PACKAGE] = importlib.util.module_from_spec(spec)
    return importlib.import_module(f"{PACKAGE}.{name}")
