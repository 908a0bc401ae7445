"""The models' dimensions, their config.json, and linears that are trained to bear rounding."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from vocabulary import EMBEDDING_ROWS, EOS, MASK, MAX_LENGTH, PAD, VOCABULARY

from qspec.models.decoder import Decoder
from qspec.models.registry import family_of

FAMILIES = ("llada", "dream")
LAYERS, WIDTH = 6, 256
BIAS_SPREAD = 0.3  # biases matter from the start, as those of a grown model do


def config(family: str, tokens: dict[str, int], layers: int = LAYERS) -> dict[str, Any]:
    """config.json in the family's official keys. tokens: the tokenizer's vocabulary."""
    write = {"llada": _llada, "dream": _dream}[family]
    special = {"eos_token_id": tokens[EOS], "mask_token_id": tokens[MASK], "pad_token_id": tokens[PAD]}
    keys = write(layers) | special
    return {key: keys[key] for key in sorted(keys, key=lambda key: (key not in ("architectures", "model_type"), key))}


def _llada(layers: int) -> dict[str, Any]:
    """4 heads of 64; FFN 768 = 3 x 2^8, as LLaDA-8B's 12288 is 3 x 2^12."""
    return {
        "architectures": ["LLaDAModelLM"],
        "model_type": "llada",
        "activation_type": "silu",
        "block_group_size": 1,
        "block_type": "llama",
        "d_model": WIDTH,
        "embedding_size": EMBEDDING_ROWS,
        "include_bias": False,
        "include_qkv_bias": False,
        "layer_norm_type": "rms",
        "max_sequence_length": MAX_LENGTH,
        "mlp_hidden_size": 768,
        "n_heads": 4,
        "n_kv_heads": 4,
        "n_layers": layers,
        "rms_norm_eps": 1e-05,
        "rope": True,
        "rope_theta": 500000.0,
        "torch_dtype": "bfloat16",
        "use_cache": False,
        "vocab_size": VOCABULARY,
        "weight_tying": False,
    }


def _dream(layers: int) -> dict[str, Any]:
    """8 heads of 32 that share 2 of keys and values; FFN 896 = 28 x 32, as Dream-7B's width 3584 is 28 x 128."""
    return {
        "architectures": ["DreamModel"],
        "model_type": "Dream",
        "attention_dropout": 0.0,
        "hidden_act": "silu",
        "hidden_size": WIDTH,
        "initializer_range": 0.02,
        "intermediate_size": 896,
        "max_position_embeddings": MAX_LENGTH,
        "max_window_layers": layers,
        "num_attention_heads": 8,
        "num_hidden_layers": layers,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-06,
        "rope_scaling": None,
        "rope_theta": 1000000.0,
        "sliding_window": None,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "use_cache": False,
        "use_mrope": False,
        "use_sliding_window": False,
        "vocab_size": EMBEDDING_ROWS,
    }


class NoisyLinear(nn.Linear):
    """A linear whose input and weight are shaken while it trains, as rounding to a few bits would shake them.

        y = (x + a rms(x) e) (W + w rms(W_row) E)^T + b,    e, E ~ N(0, 1) anew in every step

    rms(x) is each token's own, rms(W_row) each output channel's. a, w: `activation`, `weight_noise`, 0-dim tensors that
    all linears of a model share.
    """

    activation: Tensor
    weight_noise: Tensor

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return functional.linear(x, self.weight, self.bias)
        scale = x.detach().float().square().mean(-1, keepdim=True).sqrt() * self.activation
        x = x + scale.to(x.dtype) * torch.randn_like(x)
        w = self.weight
        row = w.detach().square().mean(-1, keepdim=True).sqrt() * self.weight_noise
        return functional.linear(x, w + row * torch.randn_like(w), self.bias)


def build(settings: dict[str, Any], device: torch.device, noise: tuple[Tensor, Tensor]) -> Decoder:
    """A fresh model whose block linears are noisy. noise: the shared levels of activations and weights."""
    family = family_of(settings)
    shape = family.shape(settings)
    model = Decoder(family, shape, device=device, dtype=torch.float32)
    residual_writers = ("attention.o", "mlp.down")
    for block in model.blocks:
        for part in (
            "attention.q",
            "attention.k",
            "attention.v",
            "attention.o",
            "mlp.gate",
            "mlp.up",
            "mlp.down",
        ):
            plain = block.part(part)
            assert isinstance(plain, nn.Linear)
            biased = plain.bias is not None
            noisy = NoisyLinear(plain.in_features, plain.out_features, bias=biased, device=device)
            noisy.activation, noisy.weight_noise = noise
            spread = plain.in_features**-0.5
            if part in residual_writers:
                spread *= (2 * shape.layers) ** -0.5
            nn.init.normal_(noisy.weight, std=spread)
            if biased:
                nn.init.normal_(noisy.bias, std=BIAS_SPREAD)
            block.replace(part, noisy)
    for module in (model.embedding, model.head):
        assert isinstance(module, nn.Embedding | nn.Linear)
        nn.init.normal_(module.weight, std=WIDTH**-0.5)
    return model
