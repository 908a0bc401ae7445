"""One library of rendered kernels for each file of tests."""

from __future__ import annotations

import pytest

from qspec.kernels.generate import KernelLibrary


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> KernelLibrary:
    patch = pytest.MonkeyPatch()
    patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    return KernelLibrary()
