"""A mixture of experts compiled and loaded on a GPU: its logits beside those of the same artifact on a CPU."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import qspec
from qspec.compiler import CompileOptions
from qspec.models.sampler import BlockSettings, sample
from tests.end_to_end.test_experts import CONFIGS, GPTQ, RECIPE, W4A4, W4A16, W8A8
from tests.models.expert_layout import random_weights
from tests.models.hub import hub_folder

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]
SIZES = {"hidden_size": 256, "moe_intermediate_size": 128, "expert_intermediate_size": 128, "intermediate_size": 256}
SMOOTH = "smooth(alpha = 0.6) on blocks[*].*\napply rotate_duquant(block = 128, steps = 8) on blocks[*].*\napply "


@pytest.mark.parametrize("family", ["llada2", "sdar_moe", "llada_moe"])
@pytest.mark.parametrize(
    ("scheme", "passes"), [(W4A16, GPTQ), (W8A8, GPTQ), (W4A4, SMOOTH + GPTQ)], ids=["w4a16", "w8a8", "w4a4"]
)
def test_both_devices_compute_alike(tmp_path: Path, family: str, scheme: str, passes: str) -> None:
    model = hub_folder(tmp_path / "model")
    config = CONFIGS[family] | {key: value for key, value in SIZES.items() if key in CONFIGS[family]}
    (model / "config.json").write_text(json.dumps(config))
    weights = random_weights(config, seed=1)
    save_file({key: torch.from_numpy(w).bfloat16() for key, w in weights.items()}, model / "model.safetensors")
    text = tmp_path / "text.txt"
    text.write_text("\n".join(f"Tom has {i} boxes with {i % 7} eggs in each box." for i in range(300)))
    path = tmp_path / "experts.qs"
    path.write_text(RECIPE.format(model=model, text=text, scheme=scheme, passes=passes, rules=""))
    out = tmp_path / "out"
    qspec.compile(str(path), out=str(out), device="cuda", options=CompileOptions(evaluate=False))
    on_gpu, _ = qspec.load(out, device="cuda")
    on_cpu, _ = qspec.load(out, device="cpu")
    assert [block.grouped is not None for block in on_gpu.blocks] == [
        block.mixture is not None for block in on_gpu.blocks
    ]
    ids = torch.arange(3, 131).reshape(2, 64)
    with torch.no_grad():
        found, expected = on_gpu(ids.cuda()).logits.float().cpu(), on_cpu(ids).logits
    apart = (found - expected).norm(dim=-1) / expected.norm(dim=-1)
    print(family, scheme.split("\n")[0], "median", float(apart.median()), "mean", float(apart.mean()))
    assert float(apart.median()) < 0.1  # bfloat16 activations; a few tokens go to other experts
    if family != "llada_moe":
        prompt, settings = torch.arange(3, 19)[None].cuda(), BlockSettings(length=16, steps=16)
        captured, eager = (sample(on_gpu, prompt, None, settings, captured=one) for one in (True, False))
        assert torch.equal(captured, eager)
