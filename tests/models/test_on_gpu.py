"""The decoder and the sampler compute on a GPU what they compute on a CPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from qspec.models.checkpoint import load_decoder
from qspec.models.sampler import SamplerSettings, sample
from tests.models.layout import TINY, forward, random_weights, write_checkpoint

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]
CONFIG = TINY | {"d_model": 256, "n_kv_heads": 2, "mlp_hidden_size": 384}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_checkpoint(tmp_path, CONFIG, random_weights(CONFIG))
    return tmp_path


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-5), (torch.float32, 1e-4), (torch.bfloat16, 5e-2)])
def test_logits_equal_the_papers_equations(folder: Path, dtype: torch.dtype, tolerance: float) -> None:
    ids = np.random.default_rng(3).integers(0, 50, (2, 33))
    mask = np.ones((2, 33), dtype=np.int64)
    mask[1, :9] = 0
    decoder = load_decoder(folder, "cuda", dtype)
    logits = decoder(torch.from_numpy(ids).cuda(), torch.from_numpy(mask).cuda()).logits.double().cpu().numpy()
    for row in range(2):
        expected = forward(CONFIG, random_weights(CONFIG), ids[row], mask[row])
        found = logits[row][mask[row] == 1]
        assert np.linalg.norm(found - expected) < tolerance * np.linalg.norm(expected)


def test_the_sampler_draws_the_same_text(folder: Path) -> None:
    prompt = torch.tensor([[7, 30, 12, 5], [0, 0, 44, 2]])
    mask = torch.tensor([[1, 1, 1, 1], [0, 0, 1, 1]])
    settings = SamplerSettings(16, 8, 8, temperature=0.8, cfg=0.5, seed=5)
    on_cpu = sample(load_decoder(folder, "cpu", torch.float64), prompt, mask, settings)
    on_gpu = sample(load_decoder(folder, "cuda", torch.float64), prompt, mask, settings)
    assert torch.equal(on_gpu.cpu(), on_cpu)
