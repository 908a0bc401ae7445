"""LLaDA-8B Base, Instruct and 1.5 (arXiv 2502.09992): full attention, no shift, RMSNorm, untied head.

`ff_out` names two things in this layout: a block's down-projection and, at top level, the LM head. `ff_proj`
is the gate.
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

SPELLINGS = {  # ours -> as transformers' own models have it
    "d_model": "hidden_size",
    "n_layers": "num_hidden_layers",
    "n_heads": "num_attention_heads",
    "n_kv_heads": "num_key_value_heads",
    "mlp_hidden_size": "intermediate_size",
    "max_sequence_length": "max_position_embeddings",
    "activation_type": "hidden_act",
    "weight_tying": "tie_word_embeddings",
}
UNSUPPORTED = ("alibi", "attention_layer_norm", "input_emb_norm", "multi_query_attention", "scale_logits")


def _recognises(config: Mapping[str, Any]) -> bool:
    """By architecture; without one, by model_type and no experts (LLaDA-MoE shares the type)."""
    architectures = config.get("architectures")
    if isinstance(architectures, list) and architectures:
        return "LLaDAModelLM" in architectures
    return config.get("model_type") == "llada" and "num_experts" not in config


def _check_variant(config: Mapping[str, Any]) -> None:
    """The layout has switches that no published checkpoint uses and our decoder does not compute."""
    expect(config, "block_type", "llama")
    expect(config, "block_group_size", 1)
    expect(config, "activation_type", "silu")
    expect(config, "layer_norm_type", "rms")
    expect(config, "rope", True)
    for switch in UNSUPPORTED:
        expect(config, switch, False)
    expect(config, "layer_norm_with_affine", True)
    if flag(config, "bias_for_layer_norm", default=flag(config, "include_bias")):
        raise bad("bias_for_layer_norm", "is true, or absent beside include_bias; norms have no bias here")


def _shape(config: Mapping[str, Any]) -> DecoderShape:
    config = spelled(config, SPELLINGS)
    _check_variant(config)
    width, count, kv_heads = heads(config, "d_model", "n_heads", "n_kv_heads")
    expect(config, "head_dim", width // count)
    words = integer(config, "vocab_size", 1, MAX_VOCAB)
    vocab = integer(config, "embedding_size", words, MAX_VOCAB, default=words)
    bias = flag(config, "include_bias")
    return DecoderShape(
        layers=integer(config, "n_layers", 1, MAX_LAYERS),
        width=width,
        heads=count,
        kv_heads=kv_heads,
        head_width=width // count,
        ffn=integer(config, "mlp_hidden_size", 1, MAX_FFN),
        vocab=vocab,
        max_length=integer(config, "max_sequence_length", 1, MAX_LENGTH),
        norm_eps=real(config, "rms_norm_eps", 0, 1, default=1e-5),
        rope_theta=rope_theta(config),
        qkv_bias=flag(config, "include_qkv_bias") or bias,
        bias=bias,
        tied=flag(config, "weight_tying"),
        shift=False,
        sampler="llada",
        **special_tokens(config, vocab),
    )


LLADA = Family(
    name="llada",
    recognises=_recognises,
    shape=_shape,
    blocks="model.transformer.blocks",
    parts={
        "attention.norm": "attn_norm",
        "attention.q": "q_proj",
        "attention.k": "k_proj",
        "attention.v": "v_proj",
        "attention.o": "attn_out",
        "mlp.norm": "ff_norm",
        "mlp.gate": "ff_proj",
        "mlp.up": "up_proj",
        "mlp.down": "ff_out",
    },
    globals={
        "embedding": "model.transformer.wte",
        "final_norm": "model.transformer.ln_f",
        "head": "model.transformer.ff_out",
    },
    hosted=True,
)
