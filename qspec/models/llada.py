"""LLaDA-8B Base, Instruct and 1.5 (arXiv 2502.09992): full attention, no shift, RMSNorm, untied head, no biases.

`ff_out` names two things in this layout: a block's down-projection and, at top level, the LM head. `ff_proj` is the gate.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qspec.models.family import DecoderShape, Family


def _recognises(config: Mapping[str, Any]) -> bool:
    return config.get("model_type") == "llada" and config.get("block_type") == "llama"


def _shape(config: Mapping[str, Any]) -> DecoderShape:
    heads = config["n_heads"]
    return DecoderShape(
        layers=config["n_layers"],
        width=config["d_model"],
        heads=heads,
        kv_heads=config.get("n_kv_heads") or heads,
        head_width=config["d_model"] // heads,
        ffn=config["mlp_hidden_size"],
        vocab=config.get("embedding_size") or config["vocab_size"],
        max_length=config["max_sequence_length"],
        norm_eps=config.get("rms_norm_eps", 1e-5),
        rope_theta=config["rope_theta"],
        qkv_bias=bool(config.get("include_qkv_bias")) or bool(config.get("include_bias")),
        bias=bool(config.get("include_bias")),
        tied=bool(config.get("weight_tying")),
        shift=False,
        mask_token=config["mask_token_id"],
        eos_token=config["eos_token_id"],
        pad_token=config["pad_token_id"],
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
)
