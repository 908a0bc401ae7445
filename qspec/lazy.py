"""Modules that load on first use: a pass file names torch at its top, `qspec check` never pays for it."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType
from typing import Any


class LazyModule(ModuleType):
    """Stands for `name` until an attribute is asked for."""

    def __getattr__(self, attribute: str) -> Any:
        return getattr(import_module(self.__name__), attribute)
