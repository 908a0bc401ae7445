"""LLaDA-MoE-7B-A1B (arXiv 2509.24389): full attention over 64 experts a block, of which a token takes 8.

The layout is OLMoE's with queries and keys normed head by head. The published code takes the 8 largest of a softmax as
they are, whatever config.json says of norm_topk_prob. `model_type` is `llada`, as the dense model's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qspec.models.family import DecoderShape, Experts, Family
from qspec.models.fields import MAX_FFN, bad, expect, integer
from qspec.models.qwen import BLOCKS, GLOBALS, MIXED, check_dense, dense_shape, experts_of, named
from qspec.models.sdar import HEAD_NORMS

MASK = 156895


def _recognises(config: Mapping[str, Any]) -> bool:
    """By architecture; without one, by model_type and experts."""
    architectures = ("LLaDAMoEModelLM", "LLaDAMoEModel")
    named_so = named(config, architectures, "lladamoe") or named(config, architectures, "llada_moe")
    return named_so or (named(config, architectures, "llada") and "num_experts" in config)


def _check_variant(config: Mapping[str, Any]) -> None:
    check_dense(config, "attention_bias", "moe_router_enable_expert_bias", "norm_topk_prob")
    expect(config, "qk_layernorm", True)
    expect(config, "clip_qkv", False)
    expect(config, "moe_router_score_function", "softmax")
    expect(config, "routed_scaling_factor", 1)
    expect(config, "shared_expert_intermediate_size", 0)
    for groups in ("router_num_group", "router_topk_group"):
        expect(config, groups, 1)
    layers = config.get("moe_layer_freq")
    if layers is not None and (not isinstance(layers, list) or any(one != 1 for one in layers)):
        raise bad("moe_layer_freq", "must be 1 for every layer")


def _shape(config: Mapping[str, Any]) -> DecoderShape:
    _check_variant(config)
    given = {"mask_token_id": MASK} | {k: v for k, v in config.items() if v is not None}
    experts = experts_of(config, ffn=integer(config, "expert_intermediate_size", 1, MAX_FFN))
    return dense_shape(given, ffn=0, qkv_bias=False, shift=False, sampler="llada", qk_norm=True, experts=experts)


LLADA_MOE = Family(
    name="llada_moe",
    recognises=_recognises,
    shape=_shape,
    blocks=BLOCKS,
    parts={**MIXED, **HEAD_NORMS},
    globals=GLOBALS,
    experts=Experts(count=64, top_k=8, ffn=0),
)
