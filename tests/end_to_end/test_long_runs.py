"""A compile that is killed again and again, while it quantizes and while it measures, ends with the same report."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qspec.artifact import MEASURED
from tests.end_to_end.conftest import Mini

TIMES = ("timings", "memory", "measured_at", "speed")


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
    report["environment"].pop("qspec commit", None)  # of the checkout, which may be edited meanwhile
    files = {p.name: p.read_bytes() for p in out.iterdir() if p.is_file()}
    return {key: value for key, value in report.items() if key not in TIMES}, files


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_killed_at_random_moments_and_started_again(mini: Mini, tmp_path: Path) -> None:
    began, out = time.monotonic(), tmp_path / "killed"
    assert start(mini, tmp_path / "whole").wait() == 0
    whole, generator = time.monotonic() - began, random.Random(0)
    for _ in range(15):  # while it quantizes
        end = time.monotonic() + generator.uniform(0.2, 0.9) * whole
        killed(start(mini, out), lambda end=end: time.monotonic() > end or out.exists())
    for batches in range(1, 6):  # while it measures
        killed(start(mini, out), lambda count=batches: len(list((out / MEASURED).glob("*.safetensors"))) >= count)
    assert not (out / "report").exists()
    assert start(mini, out).wait() == 0
    assert content(out) == content(tmp_path / "whole")
    assert not (out / MEASURED).exists()


def killed(process: subprocess.Popen[bytes], when: Callable[[], bool]) -> None:
    """Killed at that moment, in which it must be running."""
    while not when():
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.wait()
