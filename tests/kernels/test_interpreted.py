"""Runs `interpreted.py` in processes that import Triton as an interpreter."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

CASES = Path(__file__).with_name("interpreted.py")
TESTS = re.findall(r"^def (test_\w+)", CASES.read_text(), re.MULTILINE)


@pytest.mark.parametrize("name", TESTS)
def test_interpreted(name: str) -> None:
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", f"{CASES}::{name}"]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(
        command, cwd=CASES.parents[2], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert re.search(r"\d+ passed", done.stdout)
