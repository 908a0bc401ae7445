"""What follows from measured row kernels and how it is shown. Times need a GPU."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from qspec.bench.rows_data import RowCell, Rows, kernels_of, markdown, read
from qspec.cli import main

ONE = RowCell("silu_mul", (128, 96), 4, 12288, 64, 64 * (5 * 12288 + 4), 8.0, 6.0)
MORE = replace(ONE, tokens=1024, bytes_moved=1024 * (5 * 12288 + 4), microseconds=40.0, copy=24.0)
RUN = Rows({"gpu": "A GPU", "torch": "2", "triton": "3"}, (ONE, MORE))


def test_the_rotations_are_those_of_the_recipes() -> None:
    found = {(kernel.source, kernel.rotations, columns) for kernel, columns in kernels_of("llada")}
    assert {("rmsnorm", (128, 32), 4096), ("silu_mul", (128, 96), 12288), ("plain", (), 4096)} <= found
    assert ("silu_mul", (128, 148), 18944) in {(k.source, k.rotations, c) for k, c in kernels_of("dream")}


def test_a_run_is_shown_and_read_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row = "| silu(gate) up | 128 x 96 | int4 | 12288 | 8.0 / 6.0 | 40.0 / 24.0 | 60% | 1573 |"
    assert row in markdown(RUN).splitlines()
    stored, document = tmp_path / "rows.json", tmp_path / "page.md"
    stored.write_text(json.dumps(RUN.as_json()))
    assert read([stored]) == RUN
    document.write_text("<!-- step -->\nkept\n<!-- /step -->\n<!-- rows -->\nstale\n<!-- /rows -->\nz\n")
    out = tmp_path / "out"
    assert main(["bench", "--rows", "--results", str(stored), "--document", str(document), "--out", str(out)]) == 0
    assert row in capsys.readouterr().out
    text = document.read_text()
    assert row in text
    assert "kept" in text
    assert "stale" not in text
    assert json.loads((out / "rows.json").read_text())["cells"][0]["share"] == 0.75


def test_what_is_no_run_of_this_gpu_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken, other, stored = (tmp_path / name for name in ("broken.json", "other.json", "rows.json"))
    broken.write_text('{"cells": [{}], "environment": {}}')
    other.write_text(json.dumps(replace(RUN, environment={**RUN.environment, "gpu": "B"}).as_json()))
    stored.write_text(json.dumps(RUN.as_json()))
    for files, message in (([broken], "not a benchmark's rows.json"), ([stored, other], "different GPUs")):
        options = [part for file in files for part in ("--results", str(file))]
        assert main(["bench", "--rows", *options, "--out", str(tmp_path)]) == 3
        assert message in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--format", "w4a4"], ["--shape", "4096x4096"], ["--compile"], ["--step"]])
def test_options_that_do_not_belong_together_are_usage_errors(arguments: list[str]) -> None:
    assert main(["bench", "--rows", *arguments]) == 2


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")
def test_without_a_gpu_it_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--rows"]) == 3
    assert "need a CUDA GPU" in capsys.readouterr().err


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_rows_are_timed(tmp_path: Path) -> None:
    assert main(["bench", "--rows", "--shape", "llada", "--tokens", "16", "--quiet", "--out", str(tmp_path)]) == 0
    run = read([tmp_path / "rows.json"])
    assert len(run.cells) == len(kernels_of("llada"))
    assert all(0.02 < cell.share < 1.5 for cell in run.cells)
