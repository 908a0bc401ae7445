"""DiffusionGemma on a CUDA GPU: the sampler's tokens, logits by our kernels, a whole compile; no transformers.

python -m pytest tests/gpu/test_diffusion_gemma.py -m gpu
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import qspec
from qspec.kernels import attention
from qspec.models.engine import execution, graphs_of
from qspec.models.sampler import left_padded, sample
from qspec.models.samplers.renoise import RenoiseSettings
from qspec.models.shards import SINGLE
from tests.end_to_end.conftest import GPTQ, W4A4, Mini, mini, one_scheme  # noqa: F401 (a fixture)
from tests.end_to_end.test_diffusion_gemma import additions
from tests.models.gemma_layout import CANVAS, TWO_BLOCKS, canvas_behind, random_decoder, small, stacked
from tests.models.hub import hub_folder

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]
PROMPTS = left_padded([[5, 6, 7, 8, 9, 10], [11, 4, 12, 30]], 0)


def test_the_samplers_tokens_are_those_of_a_cpu() -> None:
    """In float64, where neither device breaks a tie of the other; experts one by one, which no graph holds."""
    decoder, settings = random_decoder(torch.float64, **TWO_BLOCKS), RenoiseSettings(20, 9, seed=3)
    expected = sample(decoder, *PROMPTS, settings)
    decoder = attention.install(decoder.to("cuda"))
    assert torch.equal(sample(decoder, *PROMPTS, settings, captured=False).cpu(), expected)


def test_our_kernels_give_the_logits_of_torchs() -> None:
    """bf16, heads as wide as published; every expert is taken, so that no choice turns around."""
    sizes = {"head_dim": 256, "global_head_dim": 512, "hidden_size": 256, "num_experts": 4, "top_k_experts": 4}
    decoder = random_decoder(torch.bfloat16, **TWO_BLOCKS, **sizes).to("cuda")
    prompts, begins = torch.arange(40, 78).view(2, 19).cuda(), torch.tensor([0, 3])

    def logits() -> torch.Tensor:
        canvas = canvas_behind(decoder, prompts, begins, 64)
        canvas.read(decoder, 19, 64)
        canvas.begin(19)
        canvas.tokens.copy_(torch.arange(80, 80 + 2 * CANVAS).view(2, CANVAS))
        for _ in range(2):
            found = decoder.finish(canvas.states(decoder, 64)).float()
            canvas.condition.copy_(decoder.told(found))
        return found

    with torch.no_grad():
        expected = logits()
        found = (attention.install(decoder), logits())[1]
    assert float((found - expected).norm() / expected.norm()) < 0.05


def test_a_whole_compile(mini: Mini, tmp_path: Path) -> None:  # noqa: F811
    """Blocks add what they add on a CPU; experts are grouped, and steps captured: the tokens of eager ones."""
    folder, out = hub_folder(tmp_path / "model"), tmp_path / "out"
    sizes = {"vocab_size": 1024, "num_experts": 4, "max_position_embeddings": 48, "hidden_size": 128}
    (folder / "config.json").write_text(json.dumps({**small(**TWO_BLOCKS, **sizes), "eos_token_id": 0}))
    save_file(stacked(random_decoder(torch.bfloat16, **TWO_BLOCKS, **sizes)), folder / SINGLE)
    qspec.compile(one_scheme(folder, mini.text, W4A4, GPTQ), out=out, device="cuda")
    (nelbo,) = json.loads((out / "report" / "report.json").read_text())["metrics"]
    assert abs(nelbo["quantized"] - nelbo["baseline"]) < 3
    for found, wanted in zip(additions(out, "cuda"), additions(out, "cpu"), strict=True):
        assert float((found - wanted).norm() / wanted.norm()) < 0.3
    decoder, _ = qspec.load(out, device="cuda")
    assert all(block.grouped is not None for block in decoder.blocks)
    settings = RenoiseSettings(20, 9, seed=3)
    tokens = sample(decoder, *PROMPTS, settings)
    assert execution(decoder) == "captured"
    assert any(one.replay is not None for one in graphs_of(decoder).steps.values())
    assert torch.equal(sample(decoder, *PROMPTS, settings), tokens)
    assert torch.equal(sample(decoder, *PROMPTS, settings, captured=False), tokens)
