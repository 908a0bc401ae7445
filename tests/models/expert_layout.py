"""Published configs and layouts of mixtures of experts, and their forward pass in float64, token by token.

From inclusionAI/LLaDA-MoE-7B-A1B-Base (config.json, modeling_lladamoe.py), JetLM/SDAR-30B-A3B-Chat (config.json,
modeling_sdar_moe.py, on Qwen3-30B-A3B's sizes), inclusionAI/LLaDA2.1-mini (config.json), LLaDA2.0-flash (config.json as
poc_llada2_flash_ep/data/model_config_744c3f8.json of jyssys/MLLM-EP keeps it) and LLaDA2.0-mini
(configs/model_configs of inclusionAI/dFactory, whose contexts are half as long; modeling_llada2_moe.py). LLaDA2.2's
block routing is that of SGLang's srt/models/llada2.py; its configs as coder543/minnow's src/config.rs (mini) and the
card of Akicou/inclusionAI_LLaDA2.2-flash-GGUF tell them, and the bytes of all tensors, 30.28 GiB and 205.9 GB.

How many tensors, parameters and bytes the checkpoints have, others read from their index files and headers:
LLaDA-MoE-7B-A1B-Base, 7,356,880,896 parameters (sarahshi99/dllm_infilling,
docs/paper_agent/experiments/20260610_1941_lladamoe_download_api_probe.md); SDAR-30B-A3B-Chat-b32, 61,064,245,248 bytes
(jyssys/MLLM-EP, poc_team_positive_ep2/EXPERIMENT_LOG.md); LLaDA2.1-mini, 14,813 tensors of 32,511,296,512 bytes
(sdevil7th/MoDiff, data/llada2-remote-code-security-review.json); LLaDA2.0-flash, 102,889,705,216 parameters, of which
99,857,989,632 the routed experts', in 24,161 tensors (jyssys/MLLM-EP,
poc_llada2_flash_ep/reports/00_environment_model_runtime.md).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.models.layout import Array, random_tensors

LLADA_MOE_7B = {
    "architectures": ["LLaDAMoEModelLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "clip_qkv": None,
    "dense_intermediate_size": 8192,
    "eos_token_id": 156892,
    "expert_intermediate_size": 1024,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "max_position_embeddings": 8192,
    "model_type": "llada",
    "moe_layer_freq": [1] * 16,
    "moe_router_enable_expert_bias": False,
    "moe_router_score_function": "softmax",
    "num_attention_heads": 16,
    "num_experts": 64,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 16,
    "num_key_value_heads": 16,
    "pad_token_id": 156892,
    "qk_layernorm": True,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "rope_theta": 50000,
    "routed_scaling_factor": 1,
    "shared_expert_intermediate_size": None,
    "tie_word_embeddings": False,
    "vocab_size": 157184,
}
SDAR_30B = {
    "architectures": ["SDARMoeForCausalLM"],
    "attention_bias": False,
    "block_size": 4,
    "decoder_sparse_step": 1,
    "eos_token_id": 151643,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "mask_token_id": 151669,
    "max_position_embeddings": 32768,
    "mlp_only_layers": [],
    "model_type": "sdar_moe",
    "moe_intermediate_size": 768,
    "norm_topk_prob": True,
    "num_attention_heads": 32,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 48,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 1000000.0,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "use_sliding_window": False,
    "vocab_size": 151936,
}
LLADA2_MINI = {
    "architectures": ["LLaDA2MoeModelLM"],
    "attention_dropout": 0.0,
    "dtype": "bfloat16",
    "embedding_dropout": 0.0,
    "first_k_dense_replace": 1,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "intermediate_size": 5120,
    "max_position_embeddings": 32768,
    "max_window_layers": 28,
    "model_type": "llada2_moe",
    "moe_intermediate_size": 512,
    "moe_router_enable_expert_bias": True,
    "n_group": 8,
    "norm_head": False,
    "norm_softmax": False,
    "norm_topk_prob": True,
    "num_attention_heads": 16,
    "num_experts": 256,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 20,
    "num_key_value_heads": 4,
    "num_shared_experts": 1,
    "output_dropout": 0.0,
    "output_router_logits": False,
    "pad_token_id": 156892,
    "partial_rotary_factor": 0.5,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 600000,
    "rotary_dim": 64,
    "routed_scaling_factor": 2.5,
    "router_dtype": "fp32",
    "score_function": "sigmoid",
    "sliding_window": 4096,
    "tie_word_embeddings": False,
    "topk_group": 4,
    "use_bias": False,
    "use_cache": False,
    "use_qkv_bias": False,
    "use_sliding_window": False,
    "vocab_size": 157184,
}
LLADA2_FLASH = LLADA2_MINI | {
    "hidden_size": 4096,
    "intermediate_size": 9216,
    "moe_intermediate_size": 1024,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "use_rmsnorm": True,
    "using_split_qkv_in_self_attention": False,
}
LLADA2_2 = {
    "block_size": 32,
    "expert_capacity": 48,
    "max_position_embeddings": 131072,
    "rope_theta": 3000000.0,
    "use_qk_norm": True,
}
SMALL = {
    "hidden_size": 24,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "num_experts": 6,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 128,
    "rope_theta": 10000.0,
    "vocab_size": 50,
    "mask_token_id": 47,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
TINY_LLADA_MOE = (
    LLADA_MOE_7B | SMALL | {"expert_intermediate_size": 12, "moe_layer_freq": [1, 1], "num_key_value_heads": 4}
)
TINY_SDAR_MOE = SDAR_30B | SMALL | {"head_dim": 8, "moe_intermediate_size": 12}
TINY_LLADA2 = LLADA2_MINI | SMALL | {
    "head_dim": 8,
    "rotary_dim": 4,
    "intermediate_size": 40,
    "moe_intermediate_size": 12,
    "num_experts": 8,
    "n_group": 4,
    "topk_group": 2,
    "num_hidden_layers": 3,
}  # fmt: skip
TINY_LLADA2_2 = TINY_LLADA2 | {"block_size": 4, "expert_capacity": 3, "delete_token_id": 48, "split_token_id": 49}


def kind(config: dict[str, Any]) -> str:
    return {"LLaDAMoEModelLM": "llada_moe", "SDARMoeForCausalLM": "sdar_moe", "LLaDA2MoeModelLM": "llada2"}[
        config["architectures"][0]
    ]


def names(config: dict[str, Any]) -> dict[str, str]:
    """What the published code calls what differs between them."""
    if kind(config) == "llada2":
        own = {"embedding": "model.word_embeddings", "attention": "attention", "o": "dense"}
        return own | {"q_norm": "query_layernorm", "k_norm": "key_layernorm", "ffn": "moe_intermediate_size"}
    own = {"embedding": "model.embed_tokens", "attention": "self_attn", "o": "o_proj", "q_norm": "q_norm"}
    ffn = "expert_intermediate_size" if kind(config) == "llada_moe" else "moe_intermediate_size"
    return own | {"k_norm": "k_norm", "ffn": ffn}


def shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """The published layout: every tensor's name and shape."""
    d, vocab, heads, kv = (
        config[key] for key in ("hidden_size", "vocab_size", "num_attention_heads", "num_key_value_heads")
    )
    width, say = config.get("head_dim") or d // heads, names(config)
    table: dict[str, tuple[int, ...]] = {f"{say['embedding']}.weight": (vocab, d), "model.norm.weight": (d,)}
    table["lm_head.weight"] = (vocab, d)

    def mlp(path: str, f: int) -> None:
        table.update({f"{path}.gate_proj.weight": (f, d), f"{path}.up_proj.weight": (f, d)})
        table[f"{path}.down_proj.weight"] = (d, f)

    for n in range(config["num_hidden_layers"]):
        block = f"model.layers.{n}"
        attention = f"{block}.{say['attention']}"
        table |= {f"{block}.{name}.weight": (d,) for name in ("input_layernorm", "post_attention_layernorm")}
        if kind(config) == "llada2":
            table[f"{attention}.query_key_value.weight"] = ((heads + 2 * kv) * width, d)
        else:
            sizes = {"q_proj": heads, "k_proj": kv, "v_proj": kv}
            table |= {f"{attention}.{name}.weight": (count * width, d) for name, count in sizes.items()}
        table[f"{attention}.{say['o']}.weight"] = (d, heads * width)
        table |= {f"{attention}.{say[name]}.weight": (width,) for name in ("q_norm", "k_norm")}
        if n < config.get("first_k_dense_replace", 0):
            mlp(f"{block}.mlp", config["intermediate_size"])
            continue
        table[f"{block}.mlp.gate.weight"] = (config["num_experts"], d)
        if config.get("moe_router_enable_expert_bias"):
            table[f"{block}.mlp.gate.expert_bias"] = (config["num_experts"],)
        for expert in range(config["num_experts"]):
            mlp(f"{block}.mlp.experts.{expert}", config[say["ffn"]])
        if config.get("num_shared_experts"):
            mlp(f"{block}.mlp.shared_experts", config["num_shared_experts"] * config[say["ffn"]])
    return table


def random_weights(config: dict[str, Any], seed: int = 0) -> dict[str, Array]:
    """Of a config's checkpoint."""
    return random_tensors(shapes(config), seed)


def in_parts(config: dict[str, Any], weights: dict[str, Array]) -> dict[str, Array]:
    """The same with q, k and v apart where the checkpoint holds them together."""
    heads, kv = config["num_attention_heads"], config["num_key_value_heads"]
    width = config.get("head_dim") or config["hidden_size"] // heads
    found = {}
    for name, value in weights.items():
        if "query_key_value" not in name:
            found[name] = value
            continue
        cuts = np.split(value, [heads * width, (heads + kv) * width])
        found |= {name.replace(".weight", f".{part}.weight"): own for part, own in zip("qkv", cuts, strict=True)}
    return found


def block_size(config: dict[str, Any]) -> int | None:
    """Of the attention; None where every token sees every other."""
    return {"llada_moe": None, "sdar_moe": config.get("block_size", 4), "llada2": config.get("block_size", 32)}[
        kind(config)
    ]


def serving(config: dict[str, Any], router: Array, bias: Array | None, h: Array) -> list[list[int]]:
    """LLaDA2.2's experts for each token of h [t, d]: those of its block whose best score for one of the block's tokens
    is among the `expert_capacity` best."""
    score = 1 / (1 + np.exp(-h @ router.T)) + (0.0 if bias is None else bias)
    size, found = config["block_size"], []
    for start in range(0, len(h), size):
        best = score[start : start + size].max(0)
        experts = sorted(range(len(best)), key=lambda e: -best[e])[: config["expert_capacity"]]
        found += [experts] * len(score[start : start + size])
    return found


def chosen(
    config: dict[str, Any], router: Array, bias: Array | None, h: Array, allowed: list[int] | None = None
) -> dict[int, float]:
    """The experts of one token [d] and the weights of their outputs, as the published code computes them. allowed: of
    these alone, instead of the best groups'."""
    z = router @ h
    if kind(config) != "llada2":
        p = np.exp(z - z.max())
        p = p / p.sum()
        best = np.argsort(-p)[: config["num_experts_per_tok"]]
        total = p[best].sum() if kind(config) == "sdar_moe" else 1.0
        return {int(e): float(p[e] / total) for e in best}
    p = 1 / (1 + np.exp(-z))
    score = p if bias is None else p + bias
    if allowed is None:
        size = len(score) // config["n_group"]
        rank = [np.sort(score[g * size : (g + 1) * size])[-2:].sum() for g in range(config["n_group"])]
        groups = np.argsort(rank)[-config["topk_group"] :]
        allowed = [e for e in range(len(score)) if e // size in groups]
    best = sorted(allowed, key=lambda e: -score[e])[: config["num_experts_per_tok"]]
    return {e: float(p[e] / p[best].sum() * config["routed_scaling_factor"]) for e in best}


def forward(config: dict[str, Any], weights: dict[str, Array], ids: Array) -> Array:
    """Logits float64 [t, vocab] of one text."""
    w = {name: value.astype(np.float64) for name, value in weights.items()}
    heads, kv, say = config["num_attention_heads"], config["num_key_value_heads"], names(config)
    width = config.get("head_dim") or config["hidden_size"] // heads
    size = block_size(config) or len(ids)
    eps, turned = config["rms_norm_eps"], int(width * config.get("partial_rotary_factor", 1.0))
    x = w[f"{say['embedding']}.weight"][ids]
    for n in range(config["num_hidden_layers"]):
        block = f"model.layers.{n}"
        attention = f"{block}.{say['attention']}"
        h = _norm(x, w[f"{block}.input_layernorm.weight"], eps)
        if kind(config) == "llada2":
            q, k, v = np.split(h @ w[f"{attention}.query_key_value.weight"].T, [heads * width, (heads + kv) * width], 1)
        else:
            q, k, v = (h @ w[f"{attention}.{name}_proj.weight"].T for name in "qkv")
        mixed = np.zeros((len(ids), heads * width))
        for head in range(heads):
            mine, shared = (slice(i * width, (i + 1) * width) for i in (head, head * kv // heads))
            a = _rope(_norm(q[:, mine], w[f"{attention}.{say['q_norm']}.weight"], eps), config["rope_theta"], turned)
            b = _rope(_norm(k[:, shared], w[f"{attention}.{say['k_norm']}.weight"], eps), config["rope_theta"], turned)
            for token in range(len(ids)):
                stop = (token // size + 1) * size
                scores = b[:stop] @ a[token] / np.sqrt(width)
                p = np.exp(scores - scores.max())
                mixed[token, mine] = p / p.sum() @ v[:stop, shared]
        x = x + mixed @ w[f"{attention}.{say['o']}.weight"].T
        h = _norm(x, w[f"{block}.post_attention_layernorm.weight"], eps)
        allowed: list[list[int]] | list[None] = [None] * len(h)
        if config.get("expert_capacity") and n >= config["first_k_dense_replace"]:
            router, bias = (w.get(f"{block}.mlp.gate.{name}") for name in ("weight", "expert_bias"))
            allowed = serving(config, router, bias, h)
        x = x + np.stack([_mlp_or_mixture(config, w, n, *one) for one in zip(h, allowed, strict=True)])
    return _norm(x, w["model.norm.weight"], eps) @ w["lm_head.weight"].T


def _mlp_or_mixture(config: dict[str, Any], w: dict[str, Array], n: int, h: Array, allowed: list[int] | None) -> Array:
    path = f"model.layers.{n}.mlp"

    def mlp(path: str) -> Array:
        gate = w[f"{path}.gate_proj.weight"] @ h
        return w[f"{path}.down_proj.weight"] @ (gate / (1 + np.exp(-gate)) * (w[f"{path}.up_proj.weight"] @ h))

    if n < config.get("first_k_dense_replace", 0):
        return mlp(path)
    routed = chosen(config, w[f"{path}.gate.weight"], w.get(f"{path}.gate.expert_bias"), h, allowed)
    y = sum(weight * mlp(f"{path}.experts.{expert}") for expert, weight in routed.items())
    return y + mlp(f"{path}.shared_experts") if config.get("num_shared_experts") else y


def _norm(x: Array, gain: Array, eps: float) -> Array:
    return gain * x / np.sqrt((x**2).mean(-1, keepdims=True) + eps)


def _rope(x: Array, theta: float, turned: int) -> Array:
    half = turned // 2
    angle = np.arange(len(x))[:, None] * theta ** (-np.arange(half) / half)
    first, second, rest = x[:, :half], x[:, half:turned], x[:, turned:]
    return np.concatenate(
        (first * np.cos(angle) - second * np.sin(angle), second * np.cos(angle) + first * np.sin(angle), rest), axis=1
    )
