"""Every shipped recipe, compiled and measured on the bundled stand-in of its family.

The quick suite draws fewer calibration samples and asks fewer items; `-m slow` runs the recipes to the letter, and is
the acceptance test: what they keep of the unquantized accuracy, through the packed artifact.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

import qspec
from qspec import resources
from qspec.compiler import CompileOptions
from tests.end_to_end.conftest import quantized_linears

RECIPES = {path.stem: path for path in sorted(resources.recipes().glob("*.qs"))}
ALIKE = ("llada_w4a16", "llada_search")  # whose passes and formats others here have too
KINDS = ("mmlu", "gsm8k", "humaneval")  # answered by the stand-in's recall, arithmetic and brackets

# Share of the unquantized exact match that must remain on every kind: (at least, at most). The quick suite asks 8
# items with an eighth of the calibration, so one item weighs 12.5 %: it lets one of them go.
QUICK_SLACK = 0.13
KEEPS = {
    "llada_w4a4": (0.90, 1.1),
    "llada_w8a8": (0.98, 1.1),
    "llada_w4a16": (0.98, 1.1),
    "llada_mixed": (0.90, 1.1),
    "llada_search": (0.90, 1.1),
    "llada_rtn_w4a4": (0.0, 0.5),
}


# Of these folders, on stand-ins whose blocks are denoised behind exact keys and values of those before.
DENOISED_BY_BLOCK = {"blocks": "fast_dllm", "experts": "sdar_moe"}
BLOCKS_KEEP = {"w8a8": (0.98, 1.1), "w4a16": (0.95, 1.1), "w4a4": (0.95, 1.1), "rtn_w4a4": (0.0, 0.5)}
ALONE = CompileOptions(reference=False)  # the same schemes only rounded are another test's (`test_only_rounded.py`)


@pytest.mark.parametrize("folder", DENOISED_BY_BLOCK)
def test_every_recipe_for_blocks_has_its_expectation(folder: str) -> None:
    assert {path.stem for path in (resources.recipes() / folder).glob("*.qs")} == set(BLOCKS_KEEP)


def test_every_recipe_has_its_expectation() -> None:
    assert set(RECIPES) == set(KEEPS)


def quick(recipe: Path, folder: Path) -> Path:
    """The recipe with an eighth of the calibration samples and a sixth of the items."""
    text = recipe.read_text().replace("samples 128", "samples 16").replace("samples 64", "samples 4")
    text = re.sub(r"task  (\w+)( \{ )?", r"task \1 { limit 8 ", text)
    text = re.sub(r"(task \w+ \{[^}\n]*)$", r"\1}", text, flags=re.MULTILINE)
    copy = folder / recipe.name
    copy.write_text(text)
    return copy


def exact_match(report: dict[str, Any]) -> dict[str, tuple[float, float, int]]:
    return {
        m["task"]: (m["baseline"], m["quantized"], m["n"]) for m in report["metrics"] if m["metric"] == "exact_match"
    }


def check(path: Path, keeps: tuple[float, float], slack: float) -> None:
    report = json.loads((path / "report" / "report.json").read_text())
    assert report["model"]["standin"] is True
    assert report["execution"].startswith("CPU reference")
    scores = exact_match(report)
    assert set(scores) == set(KINDS)
    low, high = keeps
    for kind, (baseline, quantized, _) in scores.items():
        assert baseline >= 0.95, kind
        assert (low - slack) * baseline <= quantized <= high * baseline, (kind, baseline, quantized)


def assert_quantized_as_named(path: Path, manifest: Any) -> None:
    """Each module that a rule gives a scheme runs packed, in the bits of that scheme; nothing else does."""
    model, _ = qspec.load(path, device="cpu")
    packed = quantized_linears(model)
    assert set(packed) == {r.module for r in manifest.modules if r.scheme}
    for record in manifest.modules:
        if record.scheme:
            gemm = packed[record.module].kernels.gemm
            assert packed[record.module] is packed[record.merged or record.module]
            assert f"W{gemm.weight_bits}A{gemm.activation_bits}" == record.label


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in ALIKE else []) for name in RECIPES]
)
def test_compiles_and_holds(name: str, tmp_path: Path) -> None:
    compiled = qspec.compile(quick(RECIPES[name], tmp_path), out=tmp_path / name, device="cpu")
    check(compiled.path, KEEPS[name], QUICK_SLACK)
    assert_quantized_as_named(compiled.path, compiled.manifest)


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_acceptance(name: str, tmp_path: Path) -> None:
    compiled = qspec.compile(RECIPES[name], out=tmp_path / name, device="cpu", options=ALONE)
    check(compiled.path, KEEPS[name], 0.0)


@pytest.mark.slow
@pytest.mark.parametrize("name", BLOCKS_KEEP)
@pytest.mark.parametrize("folder", DENOISED_BY_BLOCK)
def test_acceptance_of_block_diffusion(folder: str, name: str, tmp_path: Path) -> None:
    recipe = resources.recipes() / folder / f"{name}.qs"
    compiled = qspec.compile(recipe, out=tmp_path / name, device="cpu", options=ALONE)
    assert compiled.manifest.model.family == DENOISED_BY_BLOCK[folder]
    check(compiled.path, BLOCKS_KEEP[name], 0.0)
