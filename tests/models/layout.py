"""LLaDA's published layout, the safetensors format and the paper's forward pass, written independently."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

LLADA_8B = {
    "architectures": ["LLaDAModelLM"],
    "model_type": "llada",
    "block_type": "llama",
    "block_group_size": 1,
    "activation_type": "silu",
    "layer_norm_type": "rms",
    "d_model": 4096,
    "n_layers": 32,
    "n_heads": 32,
    "n_kv_heads": 32,
    "mlp_hidden_size": 12288,
    "vocab_size": 126464,
    "embedding_size": 126464,
    "max_sequence_length": 4096,
    "rope": True,
    "rope_theta": 500000.0,
    "rms_norm_eps": 1e-05,
    "include_bias": False,
    "include_qkv_bias": False,
    "weight_tying": False,
    "multi_query_attention": None,
    "mask_token_id": 126336,
    "eos_token_id": 126081,
    "pad_token_id": 126081,
}

TINY = LLADA_8B | {
    "d_model": 24,
    "n_layers": 2,
    "n_heads": 4,
    "n_kv_heads": 4,
    "mlp_hidden_size": 40,
    "vocab_size": 48,
    "embedding_size": 50,
    "max_sequence_length": 64,
    "rope_theta": 10000.0,
    "mask_token_id": 47,
    "eos_token_id": 1,
    "pad_token_id": 0,
}


def shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """The layout as its authors published it: every tensor's name and shape."""
    d, f, vocab = config["d_model"], config["mlp_hidden_size"], config["embedding_size"]
    kv = d // config["n_heads"] * config["n_kv_heads"]
    table: dict[str, tuple[int, ...]] = {
        "model.transformer.wte.weight": (vocab, d),
        "model.transformer.ln_f.weight": (d,),
    }
    if not config["weight_tying"]:
        table["model.transformer.ff_out.weight"] = (vocab, d)
    for n in range(config["n_layers"]):
        block = f"model.transformer.blocks.{n}"
        table[f"{block}.attn_norm.weight"] = (d,)
        table[f"{block}.q_proj.weight"] = (d, d)
        table[f"{block}.k_proj.weight"] = (kv, d)
        table[f"{block}.v_proj.weight"] = (kv, d)
        table[f"{block}.attn_out.weight"] = (d, d)
        table[f"{block}.ff_norm.weight"] = (d,)
        table[f"{block}.ff_proj.weight"] = (f, d)
        table[f"{block}.up_proj.weight"] = (f, d)
        table[f"{block}.ff_out.weight"] = (d, f)
        if config["include_qkv_bias"]:
            table[f"{block}.q_proj.bias"] = (d,)
            table[f"{block}.k_proj.bias"] = (kv,)
            table[f"{block}.v_proj.bias"] = (kv,)
    return table


def random_weights(config: dict[str, Any], seed: int = 0) -> dict[str, Array]:
    """float32 tensors of a size that makes every part of the model matter."""
    rng = np.random.default_rng(seed)
    weights = {}
    for name, shape in shapes(config).items():
        values = rng.standard_normal(shape)
        if len(shape) == 2 and not name.endswith("wte.weight"):
            values = 1.5 * values / np.sqrt(shape[1])
        if len(shape) == 1 and name.endswith("weight"):
            values = 1 + 0.3 * values
        weights[name] = values.astype(np.float32)
    return weights


def forward(config: dict[str, Any], weights: dict[str, Array], ids: Array, real: Array | None = None) -> Array:
    """Logits float64 [t, vocab] of one sequence ids [t], head by head and pair by pair.

    real: 1 for the tokens to keep, 0 for padding.
    """
    if real is not None:
        ids = ids[real.astype(bool)]
    w = {name: value.astype(np.float64) for name, value in weights.items()}
    heads, kv_heads, width = config["n_heads"], config["n_kv_heads"], config["d_model"] // config["n_heads"]
    x = w["model.transformer.wte.weight"][ids]
    for n in range(config["n_layers"]):

        def linear(name: str, h: Array, block: str = f"model.transformer.blocks.{n}") -> Array:
            out = h @ w[f"{block}.{name}.weight"].T
            return out + w[f"{block}.{name}.bias"] if f"{block}.{name}.bias" in w else out

        h = _norm(x, w[f"model.transformer.blocks.{n}.attn_norm.weight"], config["rms_norm_eps"])
        q, k, v = linear("q_proj", h), linear("k_proj", h), linear("v_proj", h)
        mixed = []
        for head in range(heads):
            shared = head // (heads // kv_heads)
            mine, theirs = (
                slice(head * width, (head + 1) * width),
                slice(shared * width, (shared + 1) * width),
            )
            turned_q = _rope(q[:, mine], config["rope_theta"])
            turned_k = _rope(k[:, theirs], config["rope_theta"])
            scores = np.exp(turned_q @ turned_k.T / np.sqrt(width))
            mixed.append(scores / scores.sum(1, keepdims=True) @ v[:, theirs])
        x = x + linear("attn_out", np.concatenate(mixed, axis=1))
        h = _norm(x, w[f"model.transformer.blocks.{n}.ff_norm.weight"], config["rms_norm_eps"])
        gate = linear("ff_proj", h)
        x = x + linear("ff_out", gate / (1 + np.exp(-gate)) * linear("up_proj", h))
    x = _norm(x, w["model.transformer.ln_f.weight"], config["rms_norm_eps"])
    head_name = "wte" if config["weight_tying"] else "ff_out"
    return x @ w[f"model.transformer.{head_name}.weight"].T


def _norm(x: Array, weight: Array, eps: float) -> Array:
    return weight * x / np.sqrt((x**2).mean(1, keepdims=True) + eps)


def _rope(x: Array, theta: float) -> Array:
    """Channel i and channel i + width/2 are one complex number, turned by position * theta^(-2i / width)."""
    half = x.shape[1] // 2
    pairs = x[:, :half] + 1j * x[:, half:]
    for position in range(x.shape[0]):
        for i in range(half):
            pairs[position, i] *= np.exp(1j * position * theta ** (-2 * i / x.shape[1]))
    return np.concatenate((pairs.real, pairs.imag), axis=1)


def write_safetensors(path: Path, tensors: dict[str, Array | tuple[str, tuple[int, ...], bytes]]) -> None:
    """One file by the format's definition; a value is a float32 array, or (dtype, shape, bytes)."""
    header, data = {}, b""
    for name, value in tensors.items():
        dtype, shape, raw = value if isinstance(value, tuple) else ("F32", value.shape, value.tobytes())
        header[name] = {
            "dtype": dtype,
            "shape": list(shape),
            "data_offsets": [len(data), len(data) + len(raw)],
        }
        data += raw
    write_raw(path, json.dumps(header).encode(), data)


def write_raw(path: Path, header: bytes, data: bytes) -> None:
    path.write_bytes(struct.pack("<Q", len(header)) + header + data)


def write_checkpoint(
    folder: Path, config: dict[str, Any], weights: dict[str, Array], shards: int = 1
) -> dict[str, str]:
    """A checkpoint folder; with several shards also the index. Returns tensor -> file."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    names = sorted(weights)
    if shards == 1:
        write_safetensors(folder / "model.safetensors", {name: weights[name] for name in names})
        return dict.fromkeys(names, "model.safetensors")
    files = {name: f"model-{i % shards + 1:05d}-of-{shards:05d}.safetensors" for i, name in enumerate(names)}
    for file in sorted(set(files.values())):
        write_safetensors(folder / file, {name: weights[name] for name in names if files[name] == file})
    write_index(folder, files)
    return files


def write_index(folder: Path, weight_map: dict[str, Any]) -> None:
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def random_tensors(shapes: Mapping[str, tuple[int, ...]], seed: int) -> dict[str, Array]:
    """float32 tensors of a size that makes every part of a model matter, by name."""
    rng = np.random.default_rng(seed)
    weights = {}
    for name, shape in shapes.items():
        values = rng.standard_normal(shape)
        if len(shape) == 2 and "embed" not in name:
            values = 1.5 * values / np.sqrt(shape[1])
        if "norm" in name:
            values = 1 + 0.5 * values
        if name.endswith("expert_bias"):
            values = 0.2 * values
        weights[name] = values.astype(np.float32)
    return weights
