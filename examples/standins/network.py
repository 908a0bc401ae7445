"""The models' dimensions, their config.json, linears that are trained to bear rounding, and where training begins."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from vocabulary import EMBEDDING_ROWS, EOS, MASK, MAX_LENGTH, PAD, VOCABULARY

from qspec.models.decoder import Decoder
from qspec.models.decoder_block import DecoderBlock, Linears, Router
from qspec.models.family import Role
from qspec.models.registry import family_of
from qspec.models.routing import Routing

FAMILIES = ("llada", "dream", "fast_dllm", "sdar_moe")
LAYERS, WIDTH = 6, 256
BIAS_SPREAD = 0.3  # biases matter from the start, as those of a grown model do


def config(family: str, tokens: dict[str, int], layers: int = LAYERS) -> dict[str, Any]:
    """config.json in the family's official keys. tokens: the tokenizer's vocabulary."""
    write = {"llada": _llada, "dream": _dream, "fast_dllm": _fast_dllm, "sdar_moe": _sdar_moe}[family]
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


def _fast_dllm(layers: int) -> dict[str, Any]:
    """Dream's layout, as both grew out of Qwen2.5; blocks of 16, so that answers of up to 24 tokens cross them."""
    kind = {"architectures": ["Fast_dLLM_QwenForCausalLM"], "model_type": "Fast_dLLM_Qwen", "bd_size": 16}
    return _dream(layers) | kind


def _sdar_moe(layers: int) -> dict[str, Any]:
    """tiny-llada's heads, and in the place of its FFN of 768 six experts of 128, of which a token takes two."""
    return {
        "architectures": ["SDARMoeForCausalLM"],
        "model_type": "sdar_moe",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "block_size": 4,
        "decoder_sparse_step": 1,
        "head_dim": 64,
        "hidden_act": "silu",
        "hidden_size": WIDTH,
        "initializer_range": 0.02,
        "intermediate_size": 768,
        "max_position_embeddings": MAX_LENGTH,
        "max_window_layers": layers,
        "mlp_only_layers": [],
        "moe_intermediate_size": 128,
        "norm_topk_prob": True,
        "num_attention_heads": 4,
        "num_experts": 6,
        "num_experts_per_tok": 2,
        "num_hidden_layers": layers,
        "num_key_value_heads": 4,
        "rms_norm_eps": 1e-06,
        "rope_scaling": None,
        "rope_theta": 1000000.0,
        "router_aux_loss_coef": 0.01,
        "sliding_window": None,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "use_cache": False,
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
        return functional.linear(self.shaken(x), self.shaken_weight(), self.bias)

    def shaken(self, x: Tensor) -> Tensor:
        scale = x.detach().float().square().mean(-1, keepdim=True).sqrt() * self.activation
        return x + scale.to(x.dtype) * torch.randn_like(x)

    def shaken_weight(self) -> Tensor:
        w = self.weight
        return w + w.detach().square().mean(-1, keepdim=True).sqrt() * self.weight_noise * torch.randn_like(w)


def _remember(router: nn.Module, _: object, logits: Tensor) -> None:
    """Keeps a router's logits, for a loss that keeps its experts in use."""
    router.last = logits  # type: ignore[assignment]


def every_expert(block: DecoderBlock, x: Tensor, routing: Routing, linears: Linears | None = None) -> Tensor:
    """`DecoderBlock.mixed` as products over all experts at once, among which those not chosen weigh nothing: faster
    where experts are few, and nothing waits for the device."""
    if not block.training:
        return DecoderBlock.mixed(block, x, routing, linears)
    assert block.mixture is not None
    gates, ups, downs = (
        [_expert(block, e, name) for e in range(block.mixture.count)] for name in ("gate", "up", "down")
    )
    share = routing.weights.new_zeros(len(x), len(gates)).scatter(1, routing.experts, routing.weights).to(x.dtype)
    x = gates[0].shaken(x)
    gate, up = (functional.linear(x, torch.cat([one.shaken_weight() for one in all_])) for all_ in (gates, ups))
    inner = downs[0].shaken((functional.silu(gate) * up).view(len(x), len(gates), -1)) * share[:, :, None]
    return functional.linear(inner.flatten(1), torch.cat([one.shaken_weight() for one in downs], dim=1))


def _expert(block: DecoderBlock, expert: int, name: str) -> NoisyLinear:
    linear = block.part(f"mlp.experts[{expert}].{name}")
    assert isinstance(linear, NoisyLinear)
    return linear


def build(settings: dict[str, Any], device: torch.device, noise: tuple[Tensor, Tensor]) -> Decoder:
    """A fresh model whose block linears are noisy. noise: the shared levels of activations and weights."""
    family = family_of(settings)
    shape = family.shape(settings)
    model = Decoder(family, shape, device=device, dtype=torch.float32)
    for block in model.blocks:
        for part in block.paths:
            plain = block.part(part)
            if isinstance(plain, Router):
                nn.init.normal_(plain.weight, std=WIDTH**-0.5)
                plain.register_forward_hook(_remember)
                block.mixed = partial(every_expert, block)  # type: ignore[method-assign]
            elif isinstance(plain, nn.Linear):
                block.replace(part, _noisy(part, plain, shape.layers, noise))
    for module in (model.embedding, model.head):
        assert isinstance(module, nn.Embedding | nn.Linear)
        nn.init.normal_(module.weight, std=WIDTH**-0.5)
    return model


def _noisy(part: str, plain: nn.Linear, layers: int, noise: tuple[Tensor, Tensor]) -> NoisyLinear:
    """A linear of the same size with fresh weights; those that write to the residual stream are smaller."""
    biased = plain.bias is not None
    noisy = NoisyLinear(plain.in_features, plain.out_features, bias=biased, device=plain.weight.device)
    noisy.activation, noisy.weight_noise = noise
    writes = part.endswith((".o", ".down"))
    nn.init.normal_(noisy.weight, std=(plain.in_features * (2 * layers if writes else 1)) ** -0.5)
    if biased:
        nn.init.normal_(noisy.bias, std=BIAS_SPREAD)
    return noisy


@torch.no_grad()
def take_over(model: Decoder, plain: Decoder) -> None:
    """Begins with another dense model's weights, of another family if need be.

    What the other lacks is made of what it has: gains of queries and keys that leave their mean size, and experts that
    are slices of the MLP, which count as much as the whole when a token takes its share of them.
    """
    for role in (Role("embedding"), Role("final_norm"), Role("head")):
        _copy(model.module(role), plain.module(role))
    for block, own in zip(model.blocks, plain.blocks, strict=True):
        for part in block.paths.keys() & own.paths.keys():
            _copy(block.part(part), own.part(part))
        if "attention.q_norm" in block.paths:
            gain = own.part("attention.norm").weight
            for name in ("q", "k"):
                size = (own.part(f"attention.{name}").weight * gain).square().sum(1).mean().sqrt()
                block.part(f"attention.{name}_norm").weight.fill_(size)
        if block.mixture is not None:
            count = block.mixture.count
            for name, dim, factor in (("gate", 0, 1.0), ("up", 0, 1.0), ("down", 1, count / block.mixture.top_k)):
                for expert, rows in enumerate(own.part(f"mlp.{name}").weight.chunk(count, dim)):
                    _expert(block, expert, name).weight.copy_(factor * rows)


def _copy(module: nn.Module, other: nn.Module) -> None:
    for name, weight in module.named_parameters(recurse=False):
        weight.copy_(other.get_parameter(name))
