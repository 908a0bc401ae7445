"""A report as a compile would fill it, made from formulas; `hostile` fills every text with markup."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch

from qspec.calibrate.outliers import describe, picture
from qspec.evaluate.outliers import OutlierReport
from qspec.evaluate.results import Flips, KlBucket, Sample, accuracy, nelbo
from qspec.report.data import Bytes, Compared, KernelInfo, LayerRow, ModelInfo, RecipeInfo, ReportData

PARTS = {
    "attention.q": ("q_proj", 256, 256),
    "attention.k": ("k_proj", 256, 256),
    "attention.v": ("v_proj", 256, 256),
    "attention.o": ("attn_out", 256, 256),
    "mlp.gate": ("ff_proj", 256, 768),
    "mlp.up": ("up_proj", 256, 768),
    "mlp.down": ("ff_out", 768, 256),
}
SITES = {"attention.input": 256, "attention.mixed": 256, "mlp.input": 256, "mlp.gated": 768}
TEXT, RECALL, SUMS = "stand-in text", "stand-in recall", "stand-in arithmetic"
HOSTILE = '<script>alert("x")</script><img src=x onerror=alert(1)>&amp;"\'`|\\\x00\x1b[31m]]>-->'

RECIPE = """qspec 1

# W4A4 for LLaDA-8B: block rotations against outliers, the last down-projections kept at 8 bits.
recipe llada_w4a4 {
  family llada
  model  "GSAI-ML/LLaDA-8B-Instruct" revision "main"
}

scheme w4a4 {
  weights     int4 per channel symmetric clip mse
  activations int4 per token   symmetric clip 0.9
}

layers blocks[*].{attention,mlp}.*   use w4a4
layers blocks[-3..-1].mlp.down       use w8a8

apply smooth(alpha = 0.6)                 on blocks[*].*
apply rotate_duquant(block = 128, steps = 256) on blocks[*].*
apply gptq(damp = 0.01, order = activation)    on blocks[*].*
"""


def layer_rows(blocks: int) -> tuple[LayerRow, ...]:
    rows = [_kept("embedding", "model.transformer.wte")]
    for block in range(blocks):
        for index, (part, (module, columns, height)) in enumerate(PARTS.items()):
            last = part == "mlp.down" and block >= blocks - 3
            rows.append(
                LayerRow(
                    role=f"blocks[{block}].{part}",
                    module=f"model.transformer.blocks.{block}.{module}",
                    scheme="w8a8" if last else "w4a4",
                    label="W8A8" if last else "W4A4",
                    bits=8.125 if last else 4.125,
                    sqnr_db=(38.0 if last else 16.5) + 2.2 * math.sin(block + 1.7 * index) - 0.1 * block,
                    weight_sqnr_db=(42.0 if last else 19.0) + math.cos(block * index),
                    kernel="rotate_permute_rotate_int4_token + gemm_w4_channel_a4_token",
                    rule="layers blocks[-3..-1].mlp.down use w8a8" if last else "layers blocks[*].* use w4a4",
                    passes=("apply smooth(alpha = 0.6) on blocks[*].*", "apply gptq on blocks[*].*"),
                    in_features=columns,
                    out_features=height,
                )
            )
    return (*rows, _kept("head", "model.transformer.ff_out"))


def _kept(role: str, module: str) -> LayerRow:
    return LayerRow(
        role,
        module,
        None,
        "bf16",
        16.0,
        None,
        None,
        "floating point",
        "layers head, embedding keep",
        (),
        256,
        512,
    )


def outlier_report(blocks: int) -> OutlierReport:
    generator = torch.Generator().manual_seed(0)
    tables: dict[str, list[Any]] = {"before": [], "after": []}
    pictures = []
    for block in range(blocks):
        for site, channels in SITES.items():
            x = torch.randn(128, channels, generator=generator).abs()
            even = torch.randn(128, channels, generator=generator).abs() * 1.3
            if site in ("attention.input", "mlp.input"):
                x[:, 40 + block] *= 12 + 3 * block
            if site == "mlp.gated" and block in (1, 4):
                x[torch.randint(0, 128, (22,), generator=generator), 300] = 600.0 + 20 * block
            name = f"blocks[{block}].{site}"
            tables["before"].append(describe(name, x))
            tables["after"].append(describe(name, even))
            if (block, site) in ((5, "attention.input"), (4, "mlp.gated")):
                pictures += [picture(name, "before", x), picture(name, "after", even)]
    return OutlierReport(tuple(tables["before"]), tuple(tables["after"]), tuple(pictures))


def rounded() -> Compared:
    """Measured as the sample is, but for gsm8k, which has fewer items, and humaneval, which it lacks."""
    metrics = (
        nelbo("wikitext2", "tiny-llada's own held-out text", [1.40, 1.52, 1.47], [5.40, 5.58, 5.51], TEXT),
        accuracy("mmlu", "recall (tiny-llada)", "exact_match", [True] * 48, [False] * 48, RECALL),
        accuracy("gsm8k", "arithmetic (tiny-llada)", "exact_match", [True] * 12, [False] * 12, SUMS),
    )
    return Compared("llada_rtn_w4a4", "e5" * 32, 4.11, 4.73, metrics)


def smoothed() -> Compared:
    """More bits than the sample."""
    metrics = (
        nelbo("wikitext2", "tiny-llada's own held-out text", [1.40, 1.52, 1.47], [1.41, 1.53, 1.48], TEXT),
        accuracy("mmlu", "recall (tiny-llada)", "exact_match", [True] * 48, [True] * 48, RECALL),
    )
    return Compared("llada_w8a8", "f6" * 32, 8.11, 8.52, metrics)


VERDICT = (
    "Large loss on the stand-in tiny-llada: the worst measure is exact match on stand-in arithmetic (for gsm8k), "
    "17.0 % worse (95 %: 5.2 to 30.4 %), n = 48."
)


def sample_report(blocks: int = 6) -> ReportData:
    good = [True] * 47 + [False]
    metrics = (
        nelbo(
            "wikitext2",
            "tiny-llada's own held-out text",
            [1.40, 1.52, 1.47],
            [1.45, 1.58, 1.51],
            TEXT,
        ),
        accuracy("mmlu", "recall (tiny-llada)", "exact_match", [True] * 48, good, RECALL),
        accuracy("mmlu", "recall (tiny-llada)", "choice_accuracy", [True] * 48, [True] * 48, RECALL, 0.25),
        accuracy("gsm8k", "arithmetic (tiny-llada)", "exact_match", good, [True] * 39 + [False] * 9, SUMS),
        accuracy("humaneval", "brackets (tiny-llada)", "exact_match", [True] * 48, good, "stand-in brackets"),
    )
    return ReportData(
        model=ModelInfo(
            id="tiny-llada",
            family="llada",
            standin=True,
            revision="bundled",
            replacements=(
                "text wikitext2: tiny-llada's own calibration text",
                'task gsm8k: tiny-llada\'s own "arithmetic" (length 40, steps 40, block 40)',
            ),
        ),
        recipe=RecipeInfo("llada_w4a4", RECIPE),
        bits_per_weight=4.427,
        bits_per_weight_model=5.018,
        bytes=Bytes(12_582_912, 4_034_560),
        metrics=metrics,
        layers=layer_rows(blocks),
        outliers=outlier_report(blocks),
        kernels=(
            KernelInfo("rotate_permute_rotate_int4_token", "kernels/rotate_3f9a.py", "3f9a" * 16, 42),
            KernelInfo("gemm_w4_channel_a4_token", "kernels/gemm_77c1.py", "77c1" * 16, 39),
        ),
        execution="CPU reference (the kernels' integer arithmetic, without a GPU)",
        environment={"python": "3.11.7", "system": "Linux x86_64", "qspec": "0.1.0", "gpu": "none"},
        timings={"quantize": 48.2, "evaluate": 61.7, "nelbo on wikitext2": 12.1, "gsm8k": 30.4},
        kl=tuple(
            KlBucket("wikitext2", i / 5, (i + 1) / 5, kl, 1000 + 800 * i)
            for i, kl in enumerate((0.021, 0.034, 0.052, 0.071, 0.118))
        ),
        flips=(
            Flips("mmlu", tuple(0.3 * i / 7 for i in range(8)), 0.15, 0.02, 192, 48, 46, 1.0, 1.0),
            Flips("gsm8k", tuple(min(1.0, 0.03 * i) for i in range(32)), 0.41, 0.083, 1460, 48, 30, 0.25, 2.0),
            Flips("humaneval", (0.0, 0.1, None, 0.2), 0.1, 0.01, 300, 48, 47, 1.0, 1.0),
        ),
        samples=(
            Sample(
                "gsm8k",
                "Tom has 14 apples. He buys 9 more and gives 6 away. How many are left?\n",
                "14 + 9 = 23; 23 - 6 = 17. #### 17",
                "14 + 9 = 23; 23 - 6 = 17. #### 17",
                "14 + 9 = 22; 22 - 6 = 16. #### 16",
                True,
                False,
            ),
            Sample("gsm8k", "Mia reads 3 pages a day.\n", "#### 24", "#### 24", "#### 24", True, True),
            Sample("mmlu", "The colour of a ruby is", "red", "red", "", True, False),
        ),
        not_measured=("not measured: mbpp: tiny-llada has no task of its own in its place",),
        hashes={
            "calibration tokens": "a1" * 32,
            "manifest": "c3" * 32,
            "checkpoint model.safetensors": "d4" * 32,
            "model-00001-of-00008.safetensors": "b2" * 32,
        },
        memory={"peak resident": 1_430_000_000},
        compared=(rounded(), smoothed()),
        measured_at="2026-11-29 20:00 UTC",
    )  # fmt: skip


def hostile_report() -> ReportData:
    """The same, with markup in every text that is not from a fixed set of words."""
    plain = sample_report()
    return _poisoned(plain)


def _poisoned(value: Any, name: str = "") -> Any:
    if name in ("tier", "kind", "stage", "metric", "site"):
        return value
    if isinstance(value, str):
        return value + HOSTILE
    if isinstance(value, tuple):
        return tuple(_poisoned(one, name) for one in value)
    if isinstance(value, dict):
        return {_poisoned(key): _poisoned(one) for key, one in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        changed = {one.name: _poisoned(getattr(value, one.name), one.name) for one in dataclasses.fields(value)}
        return dataclasses.replace(value, **changed)
    return value
