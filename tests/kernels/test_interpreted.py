"""Runs the files `interpreted*.py` in processes that import Triton as an interpreter, all at once."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent
SECOND = "(gated or residual) and dtype1"  # the same cases in another dtype
FIRST = (
    ("interpreted.py", "gated and not dtype1"),
    ("interpreted.py", "residual and not gated and not dtype1"),
    ("interpreted.py", "not gated and not residual"),
    ("interpreted_devices.py", ""),
    ("interpreted_rows.py", ""),
)


@pytest.mark.parametrize("parts", [FIRST, pytest.param((("interpreted.py", SECOND),), marks=pytest.mark.slow)])
def test_every_interpreted_case_passes(parts: tuple[tuple[str, str], ...]) -> None:
    runs = [
        subprocess.Popen(
            [sys.executable, "-m", "pytest", "-n", "0", "-p", "no:cacheprovider", str(FOLDER / name), "-k", chosen],
            cwd=FOLDER.parents[1],
            env={**os.environ, "TRITON_INTERPRET": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for name, chosen in parts
    ]
    passed = dict.fromkeys((name for name, _ in parts), 0)
    said = [run.communicate() for run in runs]  # of all, before one fails: its pipes would be the next test's warnings
    for (name, _), run, (out, err) in zip(parts, runs, said, strict=True):
        assert run.returncode == 0, out[-20000:] + err[-2000:]
        found = re.search(r"(\d+) passed", out)
        assert found is not None
        passed[name] += int(found[1])
    for name, count in passed.items():
        written = len(re.findall(r"^def test_", (FOLDER / name).read_text(), re.MULTILINE))
        assert count >= (written if parts is FIRST else 1)
