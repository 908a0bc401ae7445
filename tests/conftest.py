"""Tests run in processes beside each other (pytest-xdist), each of which computes on one thread."""

from __future__ import annotations

import os

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported; processes that tests start have it too
