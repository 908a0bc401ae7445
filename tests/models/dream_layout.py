"""Dream's published layout, and its forward pass in float64 through the equations of `layout`."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.models import layout
from tests.models.layout import Array

DREAM_7B = {  # config.json of Dream-v0-Instruct-7B, without the remote code's auto_map
    "architectures": ["DreamModel"],
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "eos_token_id": 151643,
    "hidden_act": "silu",
    "hidden_size": 3584,
    "initializer_range": 0.02,
    "intermediate_size": 18944,
    "mask_token_id": 151666,
    "max_position_embeddings": 131072,
    "max_window_layers": 28,
    "model_type": "Dream",
    "num_attention_heads": 28,
    "num_hidden_layers": 28,
    "num_key_value_heads": 4,
    "pad_token_id": 151643,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 1000000.0,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.46.2",
    "use_cache": True,
    "use_mrope": False,
    "use_sliding_window": False,
    "vocab_size": 152064,
}

TINY_DREAM = DREAM_7B | {
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rope_theta": 10000.0,
    "vocab_size": 50,
    "mask_token_id": 47,
    "eos_token_id": 1,
    "pad_token_id": 0,
}

NAMES = {  # below a block: ours in `layout` -> Dream's
    "attn_norm": "input_layernorm",
    "q_proj": "self_attn.q_proj",
    "k_proj": "self_attn.k_proj",
    "v_proj": "self_attn.v_proj",
    "attn_out": "self_attn.o_proj",
    "ff_norm": "post_attention_layernorm",
    "ff_proj": "mlp.gate_proj",
    "up_proj": "mlp.up_proj",
    "ff_out": "mlp.down_proj",
}
OUTER = {"wte": "model.embed_tokens", "ln_f": "model.norm", "ff_out": "lm_head"}


def as_llada(config: dict[str, Any]) -> dict[str, Any]:
    """The same dimensions in LLaDA's keys, with biases on q, k and v."""
    return layout.TINY | {
        "d_model": config["hidden_size"],
        "n_layers": config["num_hidden_layers"],
        "n_heads": config["num_attention_heads"],
        "n_kv_heads": config["num_key_value_heads"],
        "mlp_hidden_size": config["intermediate_size"],
        "vocab_size": config["vocab_size"],
        "embedding_size": config["vocab_size"],
        "max_sequence_length": config["max_position_embeddings"],
        "rope_theta": config["rope_theta"],
        "rms_norm_eps": config["rms_norm_eps"],
        "include_qkv_bias": True,
    }


def renamed(config: dict[str, Any]) -> dict[str, str]:
    """LLaDA's tensor name -> Dream's, for every tensor of the model."""
    names = {f"model.transformer.{ours}.weight": f"{theirs}.weight" for ours, theirs in OUTER.items()}
    for n in range(config["num_hidden_layers"]):
        for ours, theirs in NAMES.items():
            for kind in ("weight", "bias"):
                names[f"model.transformer.blocks.{n}.{ours}.{kind}"] = f"model.layers.{n}.{theirs}.{kind}"
    return names


def random_weights(config: dict[str, Any], seed: int = 0) -> dict[str, Array]:
    """float32 tensors under Dream's names; biases as large as what they are added to."""
    names = renamed(config)
    return {names[name]: value for name, value in layout.random_weights(as_llada(config), seed).items()}


def forward(config: dict[str, Any], weights: dict[str, Array], ids: Array, real: Array | None = None) -> Array:
    """Logits float64 [t, vocab] as the published model gives them: row i predicts token i + 1."""
    names = renamed(config)
    ours = {name: weights[theirs] for name, theirs in names.items() if theirs in weights}
    return layout.forward(as_llada(config), ours, ids, real)


def predictions(config: dict[str, Any], weights: dict[str, Array], ids: Array) -> Array:
    """Logits float64 [t, vocab] that predict each position's own token: moved by one, the first stays."""
    logits = forward(config, weights, ids)
    return np.concatenate((logits[:1], logits[:-1]))
