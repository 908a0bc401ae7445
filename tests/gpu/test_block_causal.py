"""Block-causal models on a CUDA GPU: the sampler's tokens, logits by our kernels, a whole compile.

python -m pytest tests/gpu/test_block_causal.py -m gpu
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import qspec
from qspec.kernels import attention
from qspec.models.decoder import Decoder, KeyValues
from qspec.models.sampler import BlockSettings, left_padded, sample
from qspec.models.sdar import SDAR
from tests.end_to_end.conftest import Mini, mini  # noqa: F401 (a fixture)
from tests.end_to_end.test_block_causal import SMOOTH, W4A4, W4A16, checkpoint, recipe
from tests.models.block_layout import TINY_SDAR
from tests.models.test_block_causal import tiny

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]
PROMPTS = [[5, 6, 7], list(range(2, 40)), list(range(3, 12))]


@pytest.mark.parametrize("block", [4, 32])
@pytest.mark.parametrize("kind", ["sdar", "fast_dllm"])
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_the_samplers_tokens_are_those_of_a_cpu(kind: str, block: int, temperature: float) -> None:
    """In float64, where neither device breaks a tie of the other."""
    _, _, decoder = tiny(kind, block)
    ids, mask = left_padded(PROMPTS, 0)
    settings = BlockSettings(16, 16, temperature, threshold=0.4, seed=3)
    expected = sample(decoder, ids, mask, settings)
    assert torch.equal(sample(attention.install(decoder.to("cuda")), ids, mask, settings).cpu(), expected)


@pytest.mark.parametrize("padded", [False, True])
def test_our_kernels_give_the_logits_of_torchs(padded: bool) -> None:
    """bf16, heads of 128: a pass over blocks behind kept ones, with and without padding before them."""
    config = TINY_SDAR | {"hidden_size": 256, "intermediate_size": 512, "head_dim": 128, "block_size": 4}
    torch.manual_seed(0)
    with torch.device("cuda"):
        decoder = Decoder(SDAR, SDAR.shape(config), dtype=torch.bfloat16).requires_grad_(False)
    ids = torch.randint(2, 46, (2, 48), device="cuda")
    real = torch.ones_like(ids, dtype=torch.bool)
    real[0, : 8 * padded] = False

    def logits() -> torch.Tensor:
        kept, parts = decoder.window(2, 48).kept, []
        for tokens in (slice(0, 8), *(slice(start, start + 4) for start in range(8, 48, 4))):
            seen = tuple(KeyValues(*(part[:, :, : tokens.stop] for part in one)) for one in kept)
            x = decoder.through(ids[:, tokens], decoder.blocks_context(real, tokens), seen)
            parts.append(decoder.finish(x)[real[:, tokens]].float())
        return torch.cat(parts)

    expected = logits()
    found = (attention.install(decoder), logits())[1]
    assert float((found - expected).norm() / expected.norm()) < 0.02


@pytest.mark.parametrize(
    ("family", "scheme", "passes"),
    [("sdar", W4A4, f"{SMOOTH}\napply gptq() on blocks[*].*"), ("fast_dllm", W4A16, "gptq() on blocks[*].*")],
)
def test_a_compile_generates_on_the_gpu(
    mini: Mini,  # noqa: F811
    tmp_path: Path,
    family: str,
    scheme: str,
    passes: str,
) -> None:
    model = checkpoint(family, tmp_path)
    made = qspec.compile(recipe(mini, model, scheme, passes), out=tmp_path / "out", device="cuda")
    assert made.report is not None
    loaded, tokenizer = qspec.load(made.path, device="cuda")
    on_cpu, _ = qspec.load(made.path, device="cpu")
    ids = torch.arange(40, 60)[None]
    found, wanted = loaded(ids.cuda()).logits.float().cpu(), on_cpu(ids).logits
    assert float((found - wanted).norm() / wanted.norm()) < 0.2
    assert isinstance(qspec.generate(loaded, tokenizer, "Tom has 3", length=8, threshold=0.5), str)
