"""The paper's ten cells (arXiv 2508.14896) on both stand-ins, compiled and measured on a CUDA GPU as on a CPU.

OMP_NUM_THREADS=1 python -m pytest tests/gpu/test_paper_cells.py -m gpu

Each test stands alone, so that processes can share them: `-n 16` of pytest-xdist, or `-k` of several processes. A cell
is compiled twice from the same tokens, on the CPU and on the GPU; the GPU's artifact is measured on both, through the
kernels in bfloat16 and through the reference in float32, the CPU's on the CPU. Losses are NELBOs above the unquantized
model's on the same device, over the same masked rows.

What counts as noise. Of one artifact on two devices: the standard error of the paired differences, and ARITHMETIC, what
bfloat16 moved a stand-in's NELBO by. Two artifacts are two roundings of one model: a bfloat16 stream moves a tenth of
the codes, which moved the loss by up to SPREAD of itself where a GPU's compile was emulated on a CPU, as the slow tests
here do. Three times either, and FLOOR, is allowed; docs/measurements.md has the figures.
"""

from __future__ import annotations

from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from torch import Tensor

from tests.gpu.paper import CELLS, MODELS, compiled, losses
from tests.tf32 import EmulatedTf32

ARITHMETIC, SPREAD, FLOOR = 0.005, 0.2, 0.005
NEEDS_A_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


def paired(one: Tensor, other: Tensor) -> tuple[float, float]:
    """The mean difference, and its standard error."""
    difference = other - one
    return float(difference.mean()), float(difference.std()) / len(difference) ** 0.5


def check_compiles(here: Tensor, there: Tensor) -> None:
    difference, error = paired(here, there)
    noise = (error**2 + (SPREAD * float(here.mean())) ** 2 + FLOOR**2) ** 0.5
    assert abs(difference) < 3 * noise, "the compiles differ"


@pytest.mark.gpu
@NEEDS_A_GPU
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("cell", CELLS)
def test_a_cell_loses_on_a_gpu_what_it_loses_on_a_cpu(cell: str, model: str, tmp_path: Path) -> None:
    here, there = (compiled(cell, model, tmp_path, device) for device in ("cpu", "cuda"))
    on_cpu, reference, on_gpu = losses(here, model, "cpu"), losses(there, model, "cpu"), losses(there, model, "cuda")
    print(
        f"{cell} on {model}: loses {on_cpu.mean():.4f} by the CPU, {reference.mean():.4f} and {on_gpu.mean():.4f} by the GPU"
    )
    difference, error = paired(reference, on_gpu)
    assert abs(difference) < 3 * (error**2 + ARITHMETIC**2) ** 0.5, "the kernels differ from the reference"
    check_compiles(on_cpu, reference)


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("cell", ["quarot_w4a4", "gptq_w3a16"])
def test_a_gpus_compile_loses_what_a_cpus_does(cell: str, model: str, tmp_path: Path) -> None:
    """Emulated: the stream in bfloat16, forward passes in TF32."""
    (tmp_path / "emulated").mkdir()
    here = losses(compiled(cell, model, tmp_path, "cpu"), model, "cpu")
    with patch("qspec.quantize.default_dtype", lambda device: torch.bfloat16), EmulatedTf32():
        made = compiled(cell, model, tmp_path / "emulated", "cpu")
    there = losses(made, model, "cpu")
    print(f"{cell} on {model}: loses {here.mean():.4f}, as on a GPU {there.mean():.4f}")
    check_compiles(here, there)
