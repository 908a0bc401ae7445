"""Dream-7B, Dream-Coder and DiffuCoder (arXiv 2508.15487): Qwen2's layout, read in both directions.

Grouped queries, biases on q, k and v alone, an untied head, full attention. The models grew out of an
autoregressive one and kept its alignment: logits at position i predict token i + 1 (`shift`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qspec.models.family import DecoderShape, Family
from qspec.models.fields import (
    MAX_FFN,
    MAX_LAYERS,
    MAX_LENGTH,
    MAX_VOCAB,
    bad,
    expect,
    flag,
    heads,
    integer,
    real,
    rope_theta,
    special_tokens,
    spelled,
)

SPELLINGS = {"max_position_embeddings": "max_sequence_length"}
UNSUPPORTED = ("use_mrope", "use_sliding_window", "mlp_bias", "use_qk_norm")


def _recognises(config: Mapping[str, Any]) -> bool:
    """By architecture; without one, by model_type."""
    architectures = config.get("architectures")
    if isinstance(architectures, list) and architectures:
        return "DreamModel" in architectures
    return config.get("model_type") == "Dream"


def _check_variant(config: Mapping[str, Any]) -> None:
    """The layout, and Qwen2 that it came from, have switches that our decoder does not compute."""
    expect(config, "hidden_act", "silu")
    for switch in UNSUPPORTED:
        expect(config, switch, False)
    expect(config, "attention_bias", True)
    if config.get("bd_size") is not None or config.get("block_size") is not None:
        raise bad("bd_size", "or block_size asks for block-causal attention; only full attention is supported")
    kinds = config.get("layer_types")
    if kinds is not None and (not isinstance(kinds, list) or any(kind != "full_attention" for kind in kinds)):
        raise bad("layer_types", "must name full_attention for every layer")


def _shape(config: Mapping[str, Any]) -> DecoderShape:
    config = spelled(config, SPELLINGS)
    _check_variant(config)
    width, count, kv_heads = heads(config, "hidden_size", "num_attention_heads", "num_key_value_heads")
    expect(config, "head_dim", width // count)
    vocab = integer(config, "vocab_size", 1, MAX_VOCAB)
    return DecoderShape(
        layers=integer(config, "num_hidden_layers", 1, MAX_LAYERS),
        width=width,
        heads=count,
        kv_heads=kv_heads,
        head_width=width // count,
        ffn=integer(config, "intermediate_size", 1, MAX_FFN),
        vocab=vocab,
        max_length=integer(config, "max_position_embeddings", 1, MAX_LENGTH),
        norm_eps=real(config, "rms_norm_eps", 0, 1, default=1e-6),
        rope_theta=rope_theta(config),
        qkv_bias=True,
        bias=False,
        tied=flag(config, "tie_word_embeddings"),
        shift=True,
        sampler="dream",
        **special_tokens(config, vocab),
    )


DREAM = Family(
    name="dream",
    recognises=_recognises,
    shape=_shape,
    blocks="model.layers",
    parts={
        "attention.norm": "input_layernorm",
        "attention.q": "self_attn.q_proj",
        "attention.k": "self_attn.k_proj",
        "attention.v": "self_attn.v_proj",
        "attention.o": "self_attn.o_proj",
        "mlp.norm": "post_attention_layernorm",
        "mlp.gate": "mlp.gate_proj",
        "mlp.up": "mlp.up_proj",
        "mlp.down": "mlp.down_proj",
    },
    globals={
        "embedding": "model.embed_tokens",
        "final_norm": "model.norm",
        "head": "lm_head",
    },
)
