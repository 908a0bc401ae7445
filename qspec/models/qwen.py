"""Qwen's names and config keys, which several families took over from the model that they grew out of. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qspec.models.family import DecoderShape, Experts
from qspec.models.fields import (
    MAX_EXPERTS,
    MAX_FFN,
    MAX_HEADS,
    MAX_LAYERS,
    MAX_LENGTH,
    MAX_VOCAB,
    MAX_WIDTH,
    bad,
    expect,
    flag,
    integer,
    real,
    rope_theta,
    special_tokens,
    spelled,
)

SPELLINGS = {"max_position_embeddings": "max_sequence_length"}
BLOCKS = "model.layers"
PARTS = {
    "attention.norm": "input_layernorm",
    "attention.q": "self_attn.q_proj",
    "attention.k": "self_attn.k_proj",
    "attention.v": "self_attn.v_proj",
    "attention.o": "self_attn.o_proj",
    "mlp.norm": "post_attention_layernorm",
    "mlp.gate": "mlp.gate_proj",
    "mlp.up": "mlp.up_proj",
    "mlp.down": "mlp.down_proj",
}
MIXED = {  # parts where every block is a mixture of experts
    **{part: path for part, path in PARTS.items() if part not in ("mlp.gate", "mlp.up", "mlp.down")},
    "mlp.router": "mlp.gate",
    "mlp.experts.gate": "mlp.experts.*.gate_proj",
    "mlp.experts.up": "mlp.experts.*.up_proj",
    "mlp.experts.down": "mlp.experts.*.down_proj",
}
GLOBALS = {
    "embedding": "model.embed_tokens",
    "final_norm": "model.norm",
    "head": "lm_head",
}


def check_dense(config: Mapping[str, Any], *switches: str) -> None:
    """Refuses what Qwen's code has and our decoder does not compute. switches: keys of a family that must be off."""
    expect(config, "hidden_act", "silu")
    for switch in ("use_sliding_window", *switches):
        expect(config, switch, False)
    kinds = config.get("layer_types")
    if kinds is not None and (not isinstance(kinds, list) or any(kind != "full_attention" for kind in kinds)):
        raise bad("layer_types", "must name full_attention for every layer")


def named(config: Mapping[str, Any], architectures: tuple[str, ...], model_type: str) -> bool:
    """Whether a config is of one of these architectures; without any, of this model_type."""
    found = config.get("architectures")
    if isinstance(found, list) and found:
        return any(one in found for one in architectures)
    return config.get("model_type") == model_type


def dense_shape(config: Mapping[str, Any], **own: Any) -> DecoderShape:
    """The shape of a dense model in Qwen's keys. own: what the family adds, and what it has in another way."""
    config = spelled(config, SPELLINGS)
    width = integer(config, "hidden_size", 1, MAX_WIDTH)
    heads = integer(config, "num_attention_heads", 1, MAX_HEADS)
    if config.get("head_dim") is None and width % heads:
        raise bad("num_attention_heads", f"is {heads}; hidden_size {width} does not divide into heads of even width")
    head_width = integer(config, "head_dim", 2, MAX_WIDTH, default=width // heads)
    if head_width % 2:
        raise bad("head_dim", f"is {head_width}; rotary positions need heads of even width")
    kv_heads = integer(config, "num_key_value_heads", 1, heads, default=heads)
    if heads % kv_heads:
        raise bad("num_key_value_heads", f"is {kv_heads}; it must divide num_attention_heads {heads}")
    vocab = integer(config, "vocab_size", 1, MAX_VOCAB)
    common = {
        "layers": integer(config, "num_hidden_layers", 1, MAX_LAYERS),
        "width": width,
        "heads": heads,
        "kv_heads": kv_heads,
        "head_width": head_width,
        "ffn": own["ffn"] if "ffn" in own else integer(config, "intermediate_size", 1, MAX_FFN),
        "vocab": vocab,
        "max_length": integer(config, "max_position_embeddings", 1, MAX_LENGTH),
        "norm_eps": real(config, "rms_norm_eps", 0, 1, default=1e-6),
        "rope_theta": rope_theta(config, own.get("rotary", 1.0)),
        "bias": False,
        "tied": flag(config, "tie_word_embeddings"),
        **special_tokens(config, vocab),
    }
    return DecoderShape(**common | own)


def experts_of(config: Mapping[str, Any], *, ffn: int, **own: Any) -> Experts:
    """The experts of a config with Qwen's keys for their number. own: what the family adds."""
    count = integer(config, "num_experts", 1, MAX_EXPERTS)
    groups = own.get("groups", 1)
    if count % groups or (groups > 1 and count // groups < 2):
        raise bad("n_group", f"is {groups}; num_experts {count} does not divide into groups of two or more")
    capacity = own.get("capacity", 0)
    if capacity > count:
        raise bad("expert_capacity", f"is {capacity}, more than num_experts {count}")
    most = capacity or count // groups * own.get("top_groups", 1)
    return Experts(count, integer(config, "num_experts_per_tok", 1, most), ffn, **own)
