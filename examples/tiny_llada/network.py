"""The model's dimensions, its config.json, and linears that are trained to bear rounding."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from vocabulary import EMBEDDING_ROWS, EOS, MASK, MAX_LENGTH, PAD, VOCABULARY

from qspec.models.decoder import Decoder
from qspec.models.llada import LLADA

LAYERS, WIDTH, HEADS, FFN = 6, 256, 4, 768  # FFN = 3 x 2^8, as LLaDA-8B's 12288 is 3 x 2^12


def config(tokens: dict[str, int], layers: int = LAYERS) -> dict[str, Any]:
    """config.json in LLaDA's official keys. tokens: the tokenizer's vocabulary."""
    return {
        "architectures": ["LLaDAModelLM"],
        "model_type": "llada",
        "activation_type": "silu",
        "block_group_size": 1,
        "block_type": "llama",
        "d_model": WIDTH,
        "embedding_size": EMBEDDING_ROWS,
        "eos_token_id": tokens[EOS],
        "include_bias": False,
        "include_qkv_bias": False,
        "layer_norm_type": "rms",
        "mask_token_id": tokens[MASK],
        "max_sequence_length": MAX_LENGTH,
        "mlp_hidden_size": FFN,
        "n_heads": HEADS,
        "n_kv_heads": HEADS,
        "n_layers": layers,
        "pad_token_id": tokens[PAD],
        "rms_norm_eps": 1e-05,
        "rope": True,
        "rope_theta": 500000.0,
        "torch_dtype": "bfloat16",
        "use_cache": False,
        "vocab_size": VOCABULARY,
        "weight_tying": False,
    }


class NoisyLinear(nn.Linear):
    """A linear whose input and weight are shaken while it trains, as rounding to a few bits would shake them.

        y = (x + a rms(x) e) (W + w rms(W_row) E)^T,    e, E ~ N(0, 1) anew in every step

    rms(x) is each token's own, rms(W_row) each output channel's. a, w: `activation`, `weight_noise`, 0-dim tensors that
    all linears of a model share.
    """

    activation: Tensor
    weight_noise: Tensor

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return functional.linear(x, self.weight)
        scale = x.detach().float().square().mean(-1, keepdim=True).sqrt() * self.activation
        x = x + scale.to(x.dtype) * torch.randn_like(x)
        w = self.weight
        row = w.detach().square().mean(-1, keepdim=True).sqrt() * self.weight_noise
        return functional.linear(x, w + row * torch.randn_like(w))


def build(settings: dict[str, Any], device: torch.device, noise: tuple[Tensor, Tensor]) -> Decoder:
    """A fresh model whose block linears are noisy. noise: the shared levels of activations and weights."""
    model = Decoder(LLADA, LLADA.shape(settings), device=device, dtype=torch.float32)
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
            noisy = NoisyLinear(plain.in_features, plain.out_features, bias=False, device=device)
            noisy.activation, noisy.weight_noise = noise
            spread = plain.in_features**-0.5
            if part in residual_writers:
                spread *= (2 * settings["n_layers"]) ** -0.5
            nn.init.normal_(noisy.weight, std=spread)
            block.replace(part, noisy)
    for module in (model.embedding, model.head):
        assert isinstance(module, nn.Embedding | nn.Linear)
        nn.init.normal_(module.weight, std=WIDTH**-0.5)
    return model
