"""A compile as a whole computes what it computes, whatever precision of float32 products its caller has set."""

from __future__ import annotations

from pathlib import Path

import torch

import qspec
from tests.end_to_end.conftest import NO_REPORT, Mini
from tests.end_to_end.test_mini import files
from tests.tf32 import EmulatedTf32


def test_the_callers_precision_does_not_reach_the_artifact(mini: Mini, tmp_path: Path) -> None:
    made = []
    for setting in ("highest", "high"):
        torch.set_float32_matmul_precision(setting)
        try:
            with EmulatedTf32() as products:
                made.append(qspec.compile(mini.recipe, out=tmp_path / setting, device="cpu", options=NO_REPORT))
            assert products.cut > 0  # forward passes over calibration rows
            assert torch.get_float32_matmul_precision() == setting
        finally:
            torch.set_float32_matmul_precision("highest")
    assert files(made[0].path) == files(made[1].path)
