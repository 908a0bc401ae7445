"""DiffusionGemma 26B-A4B: a Gemma 4 mixture of experts that reads text causally and denoises canvases of 256 behind it.

Every block has a dense MLP and 128 experts side by side, with norms before and behind attention, MLP, experts and both
together. Five of six blocks look back over 1024 tokens; each sixth sees everything, has wider heads, a quarter of their
pairs of channels turning, and takes its keys for values. There is no mask token: a canvas is noised with ordinary
tokens, and from the second step on is told the logits of the step before (self-conditioning). Transformers has the
model (`models/diffusion_gemma`); `tests/models/test_diffusion_gemma.py` compares.

The checkpoint's vision encoder is no part of our model, which reads text. A published layer scalar is stored twice, for
text and for canvas, and must be the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qspec.models.family import NO_MASK, Attention, DecoderShape, Experts, Family
from qspec.models.fields import (
    MAX_EXPERTS,
    MAX_FFN,
    MAX_HEADS,
    MAX_LAYERS,
    MAX_LENGTH,
    MAX_VOCAB,
    MAX_WIDTH,
    PARTIAL,
    bad,
    end_tokens,
    expect,
    integer,
    real,
)
from qspec.models.qwen import named

CANVAS, MAX_BLOCK = 256, 4096
SLIDING, FULL = "sliding_attention", "full_attention"
PATTERN = 6  # each so many blocks, one of full attention
MAX_SCALE = 1e6
OUTER = ("canvas_length", "eos_token_id", "tie_word_embeddings")  # keys that stand beside text_config


def _recognises(config: Mapping[str, Any]) -> bool:
    return named(config, ("DiffusionGemmaForBlockDiffusion",), "diffusion_gemma")


def _check_variant(config: Mapping[str, Any]) -> None:
    expect(config, "hidden_activation", "gelu_pytorch_tanh")
    expect(config, "attention_bias", False)
    expect(config, "tie_word_embeddings", True)
    expect(config, "use_bidirectional_attention", "vision")


def _attentions(config: Mapping[str, Any], layers: int) -> tuple[Attention, ...]:
    """How each layer attends, by its kind and what the config gives for it alone: for all of full attention under
    global_head_dim and num_global_key_value_heads, or, where transformers has saved it, by number in per_layer_config.
    """
    kinds = config.get("layer_types")
    kinds = [SLIDING if (i + 1) % PATTERN else FULL for i in range(layers)] if kinds is None else kinds
    if not isinstance(kinds, list) or len(kinds) != layers or any(kind not in (SLIDING, FULL) for kind in kinds):
        raise bad("layer_types", f"must name {SLIDING} or {FULL} for each of {layers} layers")
    if kinds[-1] != FULL:
        raise bad("layer_types", f"must end with {FULL}")
    own = config.get("per_layer_config")
    if own is None:
        wide = {"head_dim": config.get("global_head_dim") or 512}
        if config.get("num_global_key_value_heads") is not None:
            wide["num_key_value_heads"] = config["num_global_key_value_heads"]
        own = {str(i): wide for i, kind in enumerate(kinds) if kind == FULL}
    if not isinstance(own, Mapping) or not all(isinstance(one, Mapping) for one in own.values()):
        raise bad("per_layer_config", "must hold an object for each layer that it names")
    return tuple(_attention({**config, **own.get(str(i), {})}, kind) for i, kind in enumerate(kinds))


def _attention(config: Mapping[str, Any], kind: str) -> Attention:
    heads = integer(config, "num_attention_heads", 1, MAX_HEADS)
    width = integer(config, "head_dim", 2, MAX_WIDTH, default=256)
    kv_heads = integer(config, "num_key_value_heads", 1, heads)
    if width % 2:
        raise bad("head_dim", f"is {width} in a layer of {kind}; rotary positions need heads of even width")
    if heads % kv_heads:
        raise bad("num_key_value_heads", f"is {kv_heads}; it must divide num_attention_heads {heads}")
    theta, turning = _rope(config, kind, width)
    window = None if kind == FULL else integer(config, "sliding_window", 1, MAX_LENGTH, default=512)
    return Attention(heads, kv_heads, width, theta, width, turning, window, values=kind != FULL)


def _rope(config: Mapping[str, Any], kind: str, width: int) -> tuple[float, int]:
    """Base of the rotary positions of a kind of layer, and how many pairs of a head of this width turn."""
    published = {SLIDING: {"rope_theta": 1e4}, FULL: {"rope_theta": 1e6, PARTIAL: 0.25, "rope_type": "proportional"}}
    given = config.get("rope_parameters")
    given = published if given is None else given
    of = given.get(kind) if isinstance(given, Mapping) else None
    where = f"rope_parameters.{kind}"
    if not isinstance(of, Mapping):
        raise bad(where, "must be an object with rope_theta")
    named = {f"{where}.{key}": value for key, value in of.items()}
    proportional = of.get("rope_type") == "proportional"
    expect(named, f"{where}.rope_type", "default", "proportional")
    expect(named, f"{where}.factor", 1)
    share = real(named, f"{where}.{PARTIAL}", 0, 1 + 1e-9, default=1)
    if share != 1 and not proportional:
        raise bad(f"{where}.{PARTIAL}", f"is {share:g}; only proportional rotary positions leave channels out")
    strange = [key for key in of if key not in ("rope_type", "rope_theta", "factor", PARTIAL)]
    if strange:
        raise bad(where, f"holds {strange[0]!r}, which these rotary positions do not have")
    return real(named, f"{where}.rope_theta", 1, 1e12), int(share * width // 2)


def _shape(config: Mapping[str, Any]) -> DecoderShape:
    inner = config.get("text_config")
    if not isinstance(inner, Mapping):
        raise bad("text_config", "must be an object")
    text = {**inner, **{key: config[key] for key in OUTER if config.get(key) is not None}}
    _check_variant(text)
    layers = integer(text, "num_hidden_layers", 1, MAX_LAYERS)
    width = integer(text, "hidden_size", 1, MAX_WIDTH)
    vocab = integer(text, "vocab_size", 1, MAX_VOCAB)
    attentions = _attentions(text, layers)
    first = attentions[0]
    count = integer(text, "num_experts", 1, MAX_EXPERTS)
    ffn = integer(text, "intermediate_size", 1, MAX_FFN)
    eos, *others = end_tokens(text, vocab)
    return DecoderShape(
        layers=layers,
        width=width,
        heads=first.heads,
        kv_heads=first.kv_heads,
        head_width=first.head_width,
        ffn=ffn,
        vocab=vocab,
        max_length=integer(text, "max_position_embeddings", 1, MAX_LENGTH),
        norm_eps=real(text, "rms_norm_eps", 0, 1, default=1e-6),
        rope_theta=first.rope_theta,
        qkv_bias=False,
        bias=False,
        tied=True,
        shift=False,
        sampler="renoise",
        mask_token=NO_MASK,
        eos_token=eos,
        other_ends=tuple(others),
        pad_token=integer(text, "pad_token_id", 0, vocab - 1, default=0),
        block=integer(text, "canvas_length", 1, MAX_BLOCK, default=CANVAS),
        qk_norm=True,
        experts=Experts(
            count,
            integer(text, "top_k_experts", 1, count),
            integer(text, "moe_intermediate_size", 1, MAX_FFN),
            normalized=True,
            beside=True,
        ),
        causal=True,
        attentions=attentions,
        values_normed=True,
        score_scale=1.0,
        activation="gelu_tanh",
        embedding_scale=width**0.5,
        softcap=real(text, "final_logit_softcapping", 0, MAX_SCALE, default=30),
        conditioning=ffn,
    )


DIFFUSION_GEMMA = Family(
    name="diffusion_gemma",
    recognises=_recognises,
    shape=_shape,
    blocks="model.decoder.layers",
    parts={
        "attention.norm": "input_layernorm",
        "attention.q": "self_attn.q_proj",
        "attention.k": "self_attn.k_proj",
        "attention.v": "self_attn.v_proj",
        "attention.q_norm": "self_attn.q_norm",
        "attention.k_norm": "self_attn.k_norm",
        "attention.o": "self_attn.o_proj",
        "attention.post_norm": "post_attention_layernorm",
        "mlp.norm": "pre_feedforward_layernorm",
        "mlp.gate": "mlp.gate_proj",
        "mlp.up": "mlp.up_proj",
        "mlp.down": "mlp.down_proj",
        "mlp.dense_post_norm": "post_feedforward_layernorm_1",
        "mlp.router_norm": "router.norm",
        "mlp.router": "router.proj",
        "mlp.experts_norm": "pre_feedforward_layernorm_2",
        "mlp.experts.gate": "experts.*.gate_proj",
        "mlp.experts.up": "experts.*.up_proj",
        "mlp.experts.down": "experts.*.down_proj",
        "mlp.experts_post_norm": "post_feedforward_layernorm_2",
        "mlp.post_norm": "post_feedforward_layernorm",
        "scalar": "layer_scalar",
    },
    globals={
        "embedding": "model.decoder.embed_tokens",
        "conditioning.norm": "model.decoder.self_conditioning.pre_norm",
        "conditioning.gate": "model.decoder.self_conditioning.gate_proj",
        "conditioning.up": "model.decoder.self_conditioning.up_proj",
        "conditioning.down": "model.decoder.self_conditioning.down_proj",
        "final_norm": "model.decoder.norm",
        "head": "lm_head",
    },
    experts=Experts(count=128, top_k=8, ffn=0, normalized=True, beside=True),
    fused={
        "experts.gate_up_proj": ("mlp.experts.gate", "mlp.experts.up"),
        "experts.down_proj": ("mlp.experts.down",),
    },
    renamed={
        "router.scale": "router.norm.weight",
        "router.per_expert_scale": "router.proj.expert_scale",
        "layer_scalar": "layer_scalar.weight",
    },
    copies={"model.encoder.language_model.layers.*.layer_scalar": "layer_scalar.weight"},
    aside=("model.encoder.vision_tower.", "model.encoder.embed_vision."),
)
