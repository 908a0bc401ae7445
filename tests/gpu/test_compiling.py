"""Kernels that this process has not loaded are compiled at once, and the pass gives the bits that it gives anyway.

python -m pytest tests/gpu/test_compiling.py -m gpu
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]
PASSES = """
import sys, torch
from concurrent.futures import ThreadPoolExecutor
from qspec.kernels import compiling
from qspec.models import operations
from tests.gpu.test_engine import model_of

compiled = []
submit = ThreadPoolExecutor.submit
ThreadPoolExecutor.submit = lambda pool, *given: (compiled.append(given), submit(pool, *given))[1]
model = model_of("llada", "duquant_w4a4")
ids = torch.arange(20, device="cuda").view(1, -1)
with torch.no_grad():
    first = model.hidden(ids)
    count = len(compiled)
    again = model.hidden(ids)
    for block in model.blocks:
        block.operations = block.operations._replace(passed=operations.passed)
    plain = model.hidden(ids)
assert torch.equal(first, plain) and torch.equal(again, plain) and bool(plain.isfinite().all())
assert len(compiled) == count
print(count)
"""


def test_a_cold_pass_has_the_bits_of_a_warm_one(tmp_path: Path) -> None:
    """Twice, with Triton's cache empty and filled: as many kernels are met, of which the second takes all from it."""
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    counts = []
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-c", PASSES], env=environment, capture_output=True, text=True, check=True
        )
        counts.append(int(done.stdout))
    assert counts[0] == counts[1] > 5
