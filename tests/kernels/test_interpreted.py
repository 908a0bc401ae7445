"""Runs the files `interpreted*.py` in processes that import Triton as an interpreter, all at once."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parent
HALF = "gated or residual"  # about half of the longest file's time
PARTS = (
    ("interpreted.py", HALF),
    ("interpreted.py", f"not ({HALF})"),
    ("interpreted_devices.py", ""),
    ("interpreted_rows.py", ""),
)


def test_every_interpreted_case_passes() -> None:
    runs = [
        subprocess.Popen(
            [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", str(FOLDER / name), "-k", chosen],
            cwd=FOLDER.parents[1],
            env={**os.environ, "TRITON_INTERPRET": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for name, chosen in PARTS
    ]
    passed = dict.fromkeys((name for name, _ in PARTS), 0)
    for (name, _), run in zip(PARTS, runs, strict=True):
        out, err = run.communicate()
        assert run.returncode == 0, out[-20000:] + err[-2000:]
        found = re.search(r"(\d+) passed", out)
        assert found is not None
        passed[name] += int(found[1])
    for name, count in passed.items():
        cases = FOLDER / name
        assert count >= len(re.findall(r"^def test_", cases.read_text(), re.MULTILINE))
