"""The reference of a report is the recipe that only rounds, in families whose blocks are more than seven linears."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

import qspec
from qspec.models.shards import SINGLE
from tests.end_to_end import test_diffusion_gemma, test_experts
from tests.end_to_end.conftest import DUQUANT, GPTQ, SMOOTH, W4A4, W4A16, Mini, one_scheme

Make = Callable[[Mini, Path], Path]


def gemma(mini: Mini, folder: Path) -> Path:
    model = test_diffusion_gemma.checkpoint(folder)
    weights = {name: tensor.bfloat16() for name, tensor in load_file(model / SINGLE).items()}
    save_file(weights, model / SINGLE)  # as artifacts keep what is not rounded
    return one_scheme(model, mini.text, W4A16, f"{test_diffusion_gemma.SMOOTH}\napply {GPTQ}")


def experts(family: str) -> Make:
    def make(mini: Mini, folder: Path) -> Path:
        return one_scheme(test_experts.checkpoint(family, folder), mini.text, W4A4, f"{SMOOTH}\napply {DUQUANT}")

    return make


@pytest.mark.slow
@pytest.mark.parametrize(
    "make", [gemma, *map(experts, test_experts.CONFIGS)], ids=["diffusion_gemma", *test_experts.CONFIGS]
)
def test_the_reference_is_the_recipe_that_only_rounds(make: Make, mini: Mini, tmp_path: Path) -> None:
    path = make(mini, tmp_path)
    report = qspec.compile(path, out=tmp_path / "out", device="cpu").report
    text = re.sub(r"apply (?!gptq).*\n", "", path.read_text()).replace("apply gptq()", "apply rtn()")
    path.write_text(text)
    alone = qspec.compile(path, out=tmp_path / "alone", device="cpu").report
    assert report is not None
    assert alone is not None
    assert report.reference is not None, report.not_measured
    assert report.reference.bits_per_weight == alone.bits_per_weight
    for found, wanted in zip(report.reference.metrics, alone.metrics, strict=True):
        assert (found.task, found.n) == (wanted.task, wanted.n)
        assert found.quantized == pytest.approx(wanted.quantized, rel=1e-6)
        assert found.quantized != found.baseline
