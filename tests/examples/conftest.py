"""The example scripts as modules: those of one folder stand beside each other and are in no package."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.end_to_end.conftest import Mini, mini

__all__ = ["Mini", "mini"]

EXAMPLES = Path(__file__).parents[2] / "examples"


@contextmanager
def scripts(folder: str, *names: str) -> Iterator[SimpleNamespace]:
    """The folder's modules by name; afterwards as if they had never been imported."""
    home = EXAMPLES / folder
    before = set(sys.modules)
    sys.path.insert(0, str(home))
    try:
        yield SimpleNamespace(**{name: import_module(name) for name in names})
    finally:
        sys.path.remove(str(home))
        for name in set(sys.modules) - before:
            if (home / f"{name}.py").exists():
                del sys.modules[name]


@pytest.fixture(scope="module")
def paper_tables() -> Iterator[SimpleNamespace]:
    with scripts("paper_tables", "cells", "tables", "run", "masking") as found:
        yield found


@pytest.fixture(scope="module")
def compile_cost() -> Iterator[SimpleNamespace]:
    with scripts("compile_cost", "measure") as found:
        yield found
