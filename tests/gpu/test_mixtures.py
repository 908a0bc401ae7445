"""Mixtures of experts compiled and loaded on a GPU: logits beside those by each expert's own linears, and on a CPU.

Not passed yet: in the one run on an H200 all nine cases of an earlier form failed, and what they said was lost. Three
of them compared W4A4 with a CPU more closely than bfloat16 allows; why the others failed is not known.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import qspec
from qspec.compiler import CompileOptions
from qspec.evaluate.outliers import one_by_one
from qspec.models.sampler import BlockSettings, sample
from tests.end_to_end.conftest import GPTQ, SMOOTH, W4A4, W4A16, W8A8, one_scheme
from tests.end_to_end.test_experts import CONFIGS
from tests.models.expert_layout import random_weights
from tests.models.hub import hub_folder

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]
SIZES = {"hidden_size": 256, "moe_intermediate_size": 128, "expert_intermediate_size": 128, "intermediate_size": 256}
ROTATED = f"{SMOOTH}\napply rotate_duquant(block = 128, steps = 8) on blocks[*].*\napply {GPTQ}"


def apart(found: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
    """The relative error of each token."""
    return (found - expected).norm(dim=-1) / expected.norm(dim=-1)


@pytest.mark.parametrize("family", ["llada2", "llada2.2", "sdar_moe", "llada_moe"])
@pytest.mark.parametrize(
    ("scheme", "passes"), [(W4A16, GPTQ), (W8A8, GPTQ), (W4A4, ROTATED)], ids=["w4a16", "w8a8", "w4a4"]
)
def test_both_devices_compute_alike(tmp_path: Path, family: str, scheme: str, passes: str) -> None:
    model = hub_folder(tmp_path / "model")
    config = CONFIGS[family] | {key: value for key, value in SIZES.items() if key in CONFIGS[family]}
    (model / "config.json").write_text(json.dumps(config))
    weights = random_weights(config, seed=1)
    save_file({key: torch.from_numpy(w).bfloat16() for key, w in weights.items()}, model / "model.safetensors")
    text = tmp_path / "text.txt"
    text.write_text("\n".join(f"Tom has {i} boxes with {i % 7} eggs in each box." for i in range(300)))
    out = tmp_path / "out"
    options = CompileOptions(evaluate=False)
    qspec.compile(one_scheme(model, text, scheme, passes), out=out, device="cuda", options=options)
    on_gpu, _ = qspec.load(out, device="cuda")
    ids = torch.arange(3, 131).reshape(2, 64)
    with one_by_one(on_gpu), torch.no_grad():
        by_linear = on_gpu(ids.cuda()).logits.float().cpu()
    assert all((block.grouped is None) == (block.mixture is None) for block in on_gpu.blocks)
    with torch.no_grad():
        found = on_gpu(ids.cuda()).logits.float().cpu()
    assert float(apart(found, by_linear).median()) < 0.01  # sums in another order; a token may go to another expert
    if scheme != W4A4:  # at 4 bits the activations' last bit of bfloat16 moves codes: 0.4 on a CPU alone
        on_cpu, _ = qspec.load(out, device="cpu")
        with torch.no_grad():
            assert float(apart(found, on_cpu(ids).logits).median()) < 0.1  # 0.01 and 0.04 in bfloat16 on a CPU
    if family != "llada_moe":
        edits = {"threshold": 0.3, "edit_threshold": 0.1} if family == "llada2.2" else {}
        prompt, settings = torch.arange(3, 19)[None].cuda(), BlockSettings(16, 16, **edits)
        captured, eager = (sample(on_gpu, prompt, None, settings, captured=one) for one in (True, False))
        assert torch.equal(captured, eager)
