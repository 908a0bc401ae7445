"""What follows from measured evaluations and how it is shown; what is timed, on a CPU. Times need a GPU."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from qspec.bench import evaluation
from qspec.bench.evaluation import Shape, _measure
from qspec.bench.evaluation_data import EvaluationCell, EvaluationRun, markdown, read
from qspec.cli import main
from qspec.evaluate import tasks
from qspec.language.presets import PRESETS
from tests.models.test_cached import llada

WRITTEN = EvaluationCell("llada", "bf16", "gsm8k", 6, 1156, 256, 256, 16, 3.2, 20_000_000_000, 21_000_000_000)
RATED = EvaluationCell("llada", "bf16", "piqa", 64, 100, 0, 128, 4, 0.8, 19_000_000_000, 21_000_000_000)
OURS = replace(WRITTEN, recipe="w4a4", seconds=1.6)
RUN = EvaluationRun({"gpu": "A GPU", "torch": "2", "triton": "3"}, (WRITTEN, RATED, OURS))


def test_rates() -> None:
    assert WRITTEN.pass_milliseconds == pytest.approx(200.0)
    assert WRITTEN.items_per_second == pytest.approx(6 / (256 * 0.2))
    assert WRITTEN.tokens_per_second == pytest.approx(6 / 0.2)  # a step writes a token of each row
    assert RATED.items_per_second == pytest.approx(64 / 0.2 / 128)
    assert RATED.tokens_per_second == pytest.approx(64 * 100 / 0.2)
    assert RUN.over(OURS) == pytest.approx(2.0)
    assert RUN.over(replace(OURS, task="mmlu")) is None


def test_a_run_is_shown_and_read_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row = "| gsm8k | w4a4 | 6 x 1156 | 100.0 | 0.234 | 60 | 2.00 | 20.0 | 21.0 |"
    assert row in markdown(RUN).splitlines()
    stored = tmp_path / "evaluate.json"
    stored.write_text(json.dumps(RUN.as_json()))
    assert read([stored]) == RUN
    assert main(["bench", "--evaluate", "--results", str(stored), "--out", str(tmp_path / "out")]) == 0
    assert row in capsys.readouterr().out
    assert main(["bench", "--evaluate", "--tokens", "64"]) == 2
    assert "--evaluate takes recipes and whole models" in capsys.readouterr().err


def test_hours_are_tokens_by_the_speed_of_the_nearest_shape() -> None:
    lines = markdown(replace(RUN, cells=(WRITTEN, RATED))).splitlines()
    # 1319 answers of 256 steps over 107 + 4 * 152.5 + 256 tokens; 6 rows of 1156 tokens took 0.2 s
    tokens = 1319 * 256 * 973.0
    assert f"| gsm8k | gsm8k | {tokens / 1e6:.1f} | {tokens / (6 * 1156 / 0.2) / 3600:.2f} |" in lines
    tokens = 1838 * 2 * 128 * 36.6
    assert f"| piqa | piqa | {tokens / 1e6:.1f} | {tokens / (64 * 100 / 0.2) / 3600:.2f} |" in lines
    hours = [float(line.split("|")[4]) for line in lines if " | piqa | " in line or " | gsm8k | " in line]
    assert len(hours) == 11
    total = float(lines[-1].split("|")[4])
    assert lines[-1].startswith("| the paper's ten | | | ")
    assert total < sum(hours) + 0.1  # openbookqa is none of them


def test_full_batches_of_every_shape_are_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (evaluation, tasks):
        monkeypatch.setattr(module, "BATCH_TOKENS", 100)
    for name in ("synchronize", "reset_peak_memory_stats"):
        monkeypatch.setattr(f"torch.cuda.{name}", lambda: None)
    monkeypatch.setattr("torch.cuda.max_memory_allocated", lambda: 7)
    presets = {**PRESETS, "gsm8k": replace(PRESETS["gsm8k"], length=32, steps=32, block=8)}
    monkeypatch.setattr(evaluation, "PRESETS", presets)
    shapes = (Shape("gsm8k", 10), Shape("piqa", 4, 6), Shape("mmlu", 9, 1))
    written, rated, single = _measure(llada(), "llada", "w4a4", 1000, shapes)
    assert (written.rows, written.row, written.length, written.steps, written.passes) == (2, 42, 32, 32, 8)
    assert (rated.rows, rated.row, rated.length, rated.steps) == (10, 10, 0, 128)
    assert rated.passes == 128 / 10  # four passes of 10 rows are part of one choice with its 128 draws
    assert (single.rows, single.steps, single.passes) == (10, 1, 4)
    assert {cell.peak for cell in (written, rated, single)} == {7}
