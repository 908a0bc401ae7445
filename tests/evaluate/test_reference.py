"""The same schemes only rounded: which plans have such a reference, and what is said where it cannot be measured.

`tests/end_to_end/test_mini.py` compares its numbers with those of a recipe that only rounds.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from qspec import runtime
from qspec.errors import NumericsError
from qspec.evaluate import reference
from qspec.evaluate.reference import rounded, to_nearest, with_reference
from qspec.evaluate.results import Measurements
from qspec.language.spec import Evaluation, NelboRequest
from qspec.planned import plan
from qspec.progress import Quiet

PAPER = Path(__file__).parent.parent.parent / "recipes" / "paper"
NOTHING = Measurements((), (), (), (), ("not measured: mmlu: why",), (), 0, {})
WANTED = Evaluation((NelboRequest(samples=2),))


def test_its_schemes_are_the_recipes_and_nothing_else_is() -> None:
    planned = plan(PAPER / "duquant_w4a4.qs", "tiny-llada")
    nearest = to_nearest(planned)
    assert nearest is not None
    assert [m.scheme for m in nearest.modules] == [m.scheme for m in planned.modules]
    assert not any(m.passes or m.rotations for m in nearest.modules)
    assert nearest.bits_per_weight < planned.bits_per_weight  # no transforms to keep
    alone = plan(PAPER / "rtn_w4a4.qs", "tiny-llada")
    assert to_nearest(alone) is None
    assert [m.kernels and m.kernels.gemm for m in nearest.modules] == [
        m.kernels and m.kernels.gemm for m in alone.modules
    ]


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), "the GPU has no memory for it beside both models"),
        (NumericsError("a scale is NaN"), "a scale is NaN"),
    ],
)
def test_what_cannot_be_measured_is_named(error: Exception, why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise error

    monkeypatch.setattr(reference, "rounded", broken)
    planned, nothing = plan(PAPER / "duquant_w4a4.qs", "tiny-llada"), object()
    others: Any = (nothing, nothing)
    found = with_reference(NOTHING, planned, *others, WANTED, *others[:1], Quiet())
    assert found.reference is None
    assert found.not_measured == ("not measured: mmlu: why", f"not measured: the schemes to nearest: {why}")
    assert with_reference(NOTHING, planned, *others, Evaluation(), *others[:1], Quiet()) is NOTHING
    alone = plan(PAPER / "rtn_w4a4.qs", "tiny-llada")
    assert with_reference(NOTHING, alone, *others, WANTED, *others[:1], Quiet()) is NOTHING


def test_what_lies_outside_the_blocks_is_the_unquantized_models() -> None:
    model, _ = runtime.load("tiny-llada", "cpu")
    nearest = to_nearest(plan(PAPER / "duquant_w4a4.qs", "tiny-llada"))
    assert nearest is not None
    made = rounded(nearest, model)
    assert made.absent is model.absent
    assert made.embedding is model.embedding
    assert made.device == model.device
