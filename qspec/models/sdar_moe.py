"""SDAR-30B-A3B (arXiv 2510.06303): Qwen3-MoE's layout, denoised block by block as `sdar` is.

A softmax over 128 experts of which 8 are taken, their weights divided by their sum. No shared expert, no dense block.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qspec.models import sdar
from qspec.models.family import DecoderShape, Experts, Family
from qspec.models.fields import MAX_FFN, expect, flag, integer
from qspec.models.qwen import BLOCKS, GLOBALS, MIXED, experts_of, named


def _recognises(config: Mapping[str, Any]) -> bool:
    return named(config, ("SDARMoeForCausalLM",), "sdar_moe")


def _shape(config: Mapping[str, Any]) -> DecoderShape:
    expect(config, "decoder_sparse_step", 1)
    expect(config, "mlp_only_layers", [])
    ffn = integer(config, "moe_intermediate_size", 1, MAX_FFN)
    experts = experts_of(config, ffn=ffn, normalized=flag(config, "norm_topk_prob"))
    return sdar.shape(config, ffn=0, experts=experts)


SDAR_MOE = Family(
    name="sdar_moe",
    recognises=_recognises,
    shape=_shape,
    blocks=BLOCKS,
    parts={**MIXED, **sdar.HEAD_NORMS},
    globals=GLOBALS,
    experts=Experts(count=128, top_k=8, ffn=0),
    hosted=True,
)
