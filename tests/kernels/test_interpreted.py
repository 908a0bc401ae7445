"""Runs the files `interpreted*.py` in processes that import Triton as an interpreter."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent


@pytest.mark.parametrize("name", ["interpreted.py", "interpreted_devices.py", "interpreted_rows.py"])
def test_every_interpreted_case_passes(name: str) -> None:
    cases = FOLDER / name
    tests = len(re.findall(r"^def test_", cases.read_text(), re.MULTILINE))
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", str(cases)],
        cwd=FOLDER.parents[1],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-20000:] + done.stderr[-2000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None
    assert int(passed[1]) >= tests
