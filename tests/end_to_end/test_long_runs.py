"""A compile that is killed again and again, while it quantizes and while it measures, ends with the same report."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from qspec.artifact import MEASURED
from tests.end_to_end.conftest import Mini

TIMES = ("timings", "memory", "measured_at")


def start(mini: Mini, out: Path) -> subprocess.Popen[bytes]:
    recipe = mini.recipe.with_name("long.qs")
    if not recipe.exists():
        recipe.with_name("long.txt").write_text(
            "".join(f"Tom has {n} books and buys {n * n} more. " for n in range(900))
        )
        text = mini.recipe.read_text()
        recipe.write_text(text.replace('nelbo on file("text.txt") samples 4', 'nelbo on file("long.txt") samples 192'))
    command = [sys.executable, "-m", "qspec", "compile", str(recipe), "--out", str(out), "--device", "cpu", "--quiet"]
    return subprocess.Popen(command)


def content(out: Path) -> tuple[dict[str, Any], dict[str, bytes]]:
    report = json.loads((out / "report/report.json").read_text())
    files = {p.name: p.read_bytes() for p in out.iterdir() if p.is_file()}
    return {key: value for key, value in report.items() if key not in TIMES}, files


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_killed_at_random_moments_and_started_again(mini: Mini, tmp_path: Path) -> None:
    began = time.monotonic()
    assert start(mini, tmp_path / "whole").wait() == 0
    whole, generator = time.monotonic() - began, random.Random(0)
    kills = kept = 0
    while True:
        process = start(mini, tmp_path / "killed")
        try:
            assert process.wait(generator.uniform(0.3, 1.0) * whole if kills < 20 else None) == 0
            break
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            kills += 1
            kept += (tmp_path / "killed" / MEASURED).is_dir()
    assert kept > 0  # some of the kills were in the evaluation
    assert content(tmp_path / "killed") == content(tmp_path / "whole")
    assert not (tmp_path / "killed" / MEASURED).exists()
