"""Block-causal models on a CUDA GPU: the sampler's tokens, logits by our kernels, a whole compile.

python -m pytest tests/gpu/test_block_causal.py -m gpu
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import qspec
from qspec.kernels import attention
from qspec.models.decoder import Decoder
from qspec.models.engine import execution, graphs_of
from qspec.models.sampler import BlockSettings, left_padded, sample
from qspec.models.samplers.block_canvas import BlockShape
from qspec.models.sdar import SDAR
from tests.end_to_end.conftest import DUQUANT, GPTQ, SMOOTH, W4A4, W4A16, Mini, mini, one_scheme  # noqa: F401 (a fixture)
from tests.end_to_end.test_block_causal import LENGTH, checkpoint
from tests.models.block_layout import TINY_SDAR
from tests.models.test_block_causal import KINDS, tiny
from tests.models.test_block_engine import OPTIONS, prompts, settings_of

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
    """bf16, heads of 128: passes over two blocks, of which the second is new, with and without padding before them."""
    config = TINY_SDAR | {"hidden_size": 256, "intermediate_size": 512, "head_dim": 128, "block_size": 4}
    torch.manual_seed(0)
    with torch.device("cuda"):
        decoder = Decoder(SDAR, SDAR.shape(config), dtype=torch.bfloat16).requires_grad_(False)
    ids = torch.randint(2, 46, (2, 48), device="cuda")
    begins = torch.tensor([8 * padded, 0])
    real = torch.arange(48) >= begins.unsqueeze(1)

    def logits() -> torch.Tensor:
        canvas, parts = BlockShape(2, 64).canvas(decoder), []
        canvas.keep(decoder, torch.empty(canvas.room(decoder), dtype=torch.bfloat16, device="cuda"))
        canvas.start()
        canvas.place(ids, begins, (0, 1), seed=0)
        canvas.texts.copy_(begins + 8)
        for first, stop in ((0, 8), *((start, start + 4) for start in range(8, 48, 4))):
            canvas.window(first, stop)
            before = 4 if first else 0
            x = canvas.states(decoder, stop - first, 64, before)[:, before:]
            parts.append(decoder.finish(x)[real[:, first:stop].cuda()].float())
        return torch.cat(parts)

    expected = logits()
    found = (attention.install(decoder), logits())[1]
    assert float((found - expected).norm() / expected.norm()) < 0.02


def in_16_bits(kind: str, block: int) -> Decoder:
    """With heads of 128, which our kernels take."""
    family, config, key = KINDS[kind]
    config = config | {
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_attention_heads": 2,
        "head_dim": 128,
        "max_position_embeddings": 512,
        key: block,
    }
    torch.manual_seed(0)
    with torch.device("cuda"):
        decoder = Decoder(family, family.shape(config), dtype=torch.bfloat16).requires_grad_(False)
    return attention.install(decoder)


@pytest.mark.parametrize(("kind", "block"), [("sdar", 4), ("fast_dllm", 32)])
def test_graphs_give_the_tokens_of_eager_passes(kind: str, block: int) -> None:
    """Every option, one row and eight with padding of which some leave, the second run by the first one's graphs."""
    model = in_16_bits(kind, block)
    head = model.head
    assert head is not None
    head.weight[1] *= 2
    for options in OPTIONS:
        uneven = {"steps": 36} if "steps" in options else {}  # three passes a block of 4, 24 of 32
        settings = settings_of(options | uneven | {"stop": True}, 48)
        for rows, seed in ((1, 0), (8, 0), (8, 1)):
            given = prompts(rows, seed, 70)
            expected = sample(model, *given, settings, captured=False)
            assert torch.equal(sample(model, *given, settings), expected), (options, rows, seed)
            assert execution(model) == "captured"


def test_random_lengths_keep_memory_flat() -> None:
    """1,000 texts of 1 to 64 tokens behind prompts of 1 to 200, in one or two rows: the first 500 capture most."""
    model, draws = in_16_bits("sdar", 4), torch.Generator().manual_seed(0)
    graphs, used, captured = graphs_of(model), [], []
    sample(model, torch.ones(2, 200, dtype=torch.int64), None, BlockSettings(64, 16))
    for number in range(1, 1001):
        rows, prompt, length = (int(torch.randint(1, most, (), generator=draws)) for most in (3, 201, 65))
        ids = torch.randint(2, 46, (rows, prompt), generator=draws)
        sample(model, ids, None, BlockSettings(length, length, threshold=0.05))
        if number % 500 == 0:
            torch.cuda.empty_cache()
            used.append(torch.cuda.memory_reserved())  # of this process; other tests may share the GPU
            captured.append(sum(step.replay is not None for step in graphs.steps.values()))
    print(f"{captured} graphs, {[round(size / 1e6) for size in used]} MB")
    assert captured[1] <= captured[0] + 4
    assert used[1] <= used[0] + (64 << 20), used


@pytest.mark.parametrize(
    ("family", "scheme", "passes"),
    [("sdar", W4A4, f"{SMOOTH}\napply {DUQUANT}"), ("fast_dllm", W4A16, GPTQ)],
)
def test_a_compile_generates_on_the_gpu(
    mini: Mini,  # noqa: F811
    tmp_path: Path,
    family: str,
    scheme: str,
    passes: str,
) -> None:
    model = checkpoint(family, tmp_path)
    path = one_scheme(model, mini.text, scheme, passes, length=LENGTH)
    made = qspec.compile(path, out=tmp_path / "out", device="cuda")
    assert made.report is not None
    loaded, tokenizer = qspec.load(made.path, device="cuda")
    on_cpu, _ = qspec.load(made.path, device="cpu")
    ids = torch.arange(40, 60)[None]
    found, wanted = loaded(ids.cuda()).logits.float().cpu(), on_cpu(ids).logits
    assert float((found - wanted).norm() / wanted.norm()) < 0.2
    assert isinstance(qspec.generate(loaded, tokenizer, "Tom has 3", length=8, threshold=0.5), str)
