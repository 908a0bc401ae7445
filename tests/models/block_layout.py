"""SDAR's and Fast-dLLM v2's published configs and layouts, and their forward pass in float64, block by block.

From JetLM/SDAR-1.7B-Chat (config.json, modeling_sdar.py), SDAR-4B-Chat (config.json) and SDAR-8B-Chat (Qwen3-8B's
sizes), and Efficient-Large-Model/Fast_dLLM_v2_7B (config.json, its vocabulary and rotary base Qwen2.5-7B-Instruct's;
modeling.py).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.models.layout import Array, random_tensors

SDAR_1_7B = {  # config.json of SDAR-1.7B-Chat, without the remote code's auto_map and training switches
    "architectures": ["SDARForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "eos_token_id": 151643,
    "block_size": 4,
    "mask_token_id": 151669,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "max_position_embeddings": 32768,
    "max_window_layers": 28,
    "model_type": "sdar",
    "num_attention_heads": 16,
    "num_hidden_layers": 28,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "use_sliding_window": False,
    "vocab_size": 151936,
}
SDAR_4B = {  # which leaves block and mask token to the published code
    **{key: value for key, value in SDAR_1_7B.items() if key not in ("block_size", "mask_token_id")},
    "hidden_size": 2560,
    "intermediate_size": 9728,
    "max_window_layers": 36,
    "num_attention_heads": 32,
    "num_hidden_layers": 36,
    "use_cache": False,
}
SDAR_8B = SDAR_4B | {"hidden_size": 4096, "intermediate_size": 12288}
FAST_DLLM_7B = {  # without what training alone reads
    "architectures": ["Fast_dLLM_QwenForCausalLM"],
    "attention_dropout": 0.0,
    "bd_size": 32,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "hidden_act": "silu",
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "max_position_embeddings": 32768,
    "max_window_layers": 28,
    "model_type": "Fast_dLLM_Qwen",
    "num_attention_heads": 28,
    "num_hidden_layers": 28,
    "num_key_value_heads": 4,
    "pad_token_id": 151645,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 1000000.0,
    "tie_word_embeddings": False,
    "use_sliding_window": False,
    "vocab_size": 152064,
}
SMALL = {
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "rope_theta": 10000.0,
    "vocab_size": 50,
    "mask_token_id": 47,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
TINY_SDAR = SDAR_1_7B | SMALL | {"head_dim": 8}  # heads wider together than the residual stream
TINY_FAST = FAST_DLLM_7B | SMALL


def shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """The published layout: every tensor's name and shape."""
    d, f, vocab, heads = (config[k] for k in ("hidden_size", "intermediate_size", "vocab_size", "num_attention_heads"))
    width = config.get("head_dim") or d // heads
    q, kv, sdar = heads * width, config["num_key_value_heads"] * width, config["model_type"] == "sdar"
    table: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocab, d), "model.norm.weight": (d,)}
    if not config["tie_word_embeddings"]:
        table["lm_head.weight"] = (vocab, d)
    for n in range(config["num_hidden_layers"]):
        block = f"model.layers.{n}"
        table |= {f"{block}.{name}.weight": (d,) for name in ("input_layernorm", "post_attention_layernorm")}
        for name, rows in (("q_proj", q), ("k_proj", kv), ("v_proj", kv)):
            table[f"{block}.self_attn.{name}.weight"] = (rows, d)
            if not sdar:
                table[f"{block}.self_attn.{name}.bias"] = (rows,)
        table[f"{block}.self_attn.o_proj.weight"] = (d, q)
        if sdar:
            table |= {f"{block}.self_attn.{name}.weight": (width,) for name in ("q_norm", "k_norm")}
        table |= {f"{block}.mlp.{name}.weight": (f, d) for name in ("gate_proj", "up_proj")}
        table[f"{block}.mlp.down_proj.weight"] = (d, f)
    return table


def random_weights(config: dict[str, Any], seed: int = 0) -> dict[str, Array]:
    """Of a config's checkpoint."""
    return random_tensors(shapes(config), seed)


def block_size(config: dict[str, Any]) -> int:
    return int(config["block_size"] if config["model_type"] == "sdar" else config["bd_size"])


def forward(config: dict[str, Any], weights: dict[str, Array], ids: Array, before: Array | None = None) -> Array:
    """Logits float64 [t, vocab] of one text: a token sees its own block and all before.

    before: other ids of the same text [t], which the blocks before a token's own are taken from.
    """
    size = block_size(config)
    if before is None:
        return _states(config, weights, ids, size)
    rows = []
    for start in range(0, len(ids), size):
        mixed = np.concatenate((before[:start], ids[start : start + size]))
        rows.append(_states(config, weights, mixed, size)[start:])
    return np.concatenate(rows)


def _states(config: dict[str, Any], weights: dict[str, Array], ids: Array, size: int) -> Array:
    w = {name: value.astype(np.float64) for name, value in weights.items()}
    heads, groups = config["num_attention_heads"], config["num_attention_heads"] // config["num_key_value_heads"]
    width = config.get("head_dim") or config["hidden_size"] // heads
    eps, theta = config["rms_norm_eps"], config["rope_theta"]
    x = w["model.embed_tokens.weight"][ids]
    for n in range(config["num_hidden_layers"]):
        block = f"model.layers.{n}"

        def linear(name: str, h: Array, block: str = block) -> Array:
            return h @ w[f"{block}.{name}.weight"].T + w.get(f"{block}.{name}.bias", 0.0)

        h = _norm(x, w[f"{block}.input_layernorm.weight"], eps)
        q, k, v = (linear(f"self_attn.{name}_proj", h) for name in "qkv")
        mixed = np.zeros((len(ids), heads * width))
        for head in range(heads):
            mine, shared = (slice(i * width, (i + 1) * width) for i in (head, head // groups))
            turned = []
            for part, name in ((q[:, mine], "q_norm"), (k[:, shared], "k_norm")):
                gain = w.get(f"{block}.self_attn.{name}.weight")
                turned.append(_rope(part if gain is None else _norm(part, gain, eps), theta))
            scores = turned[0] @ turned[1].T / np.sqrt(width)
            for start in range(0, len(ids), size):
                rows, stop = slice(start, start + size), start + size
                p = np.exp(scores[rows, :stop] - scores[rows, :stop].max(1, keepdims=True))
                mixed[rows, mine] = p / p.sum(1, keepdims=True) @ v[:stop, shared]
        x = x + linear("self_attn.o_proj", mixed)
        h = _norm(x, w[f"{block}.post_attention_layernorm.weight"], eps)
        gate = linear("mlp.gate_proj", h)
        x = x + linear("mlp.down_proj", gate / (1 + np.exp(-gate)) * linear("mlp.up_proj", h))
    x = _norm(x, w["model.norm.weight"], eps)
    return x @ w["model.embed_tokens.weight" if config["tie_word_embeddings"] else "lm_head.weight"].T


def _norm(x: Array, gain: Array, eps: float) -> Array:
    return gain * x / np.sqrt((x**2).mean(-1, keepdims=True) + eps)


def _rope(x: Array, theta: float) -> Array:
    half = x.shape[1] // 2
    angle = np.arange(len(x))[:, None] * theta ** (-np.arange(half) / half)
    first, second = x[:, :half], x[:, half:]
    return np.concatenate(
        (first * np.cos(angle) - second * np.sin(angle), second * np.cos(angle) + first * np.sin(angle)), axis=1
    )
