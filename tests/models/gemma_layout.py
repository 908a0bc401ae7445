"""DiffusionGemma as transformers has it: tiny, random, in float64, and its tensors under the names of our decoder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from qspec.models.decoder import Decoder
from qspec.models.diffusion_gemma import DIFFUSION_GEMMA
from qspec.models.samplers.noise_canvas import NoiseCanvas, NoiseShape

if TYPE_CHECKING:
    from transformers import DiffusionGemmaForBlockDiffusion

CANVAS, WINDOW = 8, 6
TEXT = {
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "global_head_dim": 32,
    "num_global_key_value_heads": 1,
    "vocab_size": 128,
    "num_experts": 8,
    "top_k_experts": 2,
    "moe_intermediate_size": 32,
    "intermediate_size": 96,
    "sliding_window": WINDOW,
    "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
    "max_position_embeddings": 256,
    "use_bidirectional_attention": "vision",
}
TWO_BLOCKS = {"num_hidden_layers": 2, "layer_types": ["sliding_attention", "full_attention"]}
VISION = {
    "model_type": "gemma4_vision",
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
}
PUBLISHED: dict[
    str, Any
] = {  # config.json of google/diffusiongemma-26B-A4B-it, without its vision part and training switches
    "architectures": ["DiffusionGemmaForBlockDiffusion"],
    "boi_token_id": 255999,
    "canvas_length": 256,
    "eoi_token_id": 258882,
    "eos_token_id": [1, 106],
    "image_token_id": 258880,
    "model_type": "diffusion_gemma",
    "text_config": {
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": 2,
        "eos_token_id": 1,
        "final_logit_softcapping": 30.0,
        "global_head_dim": 512,
        "head_dim": 256,
        "hidden_activation": "gelu_pytorch_tanh",
        "hidden_size": 2816,
        "intermediate_size": 2112,
        "layer_types": [*["sliding_attention"] * 5, "full_attention"] * 5,
        "max_position_embeddings": 262144,
        "model_type": "diffusion_gemma_text",
        "moe_intermediate_size": 704,
        "num_attention_heads": 16,
        "num_experts": 128,
        "num_global_key_value_heads": 2,
        "num_hidden_layers": 30,
        "num_key_value_heads": 8,
        "pad_token_id": 0,
        "rms_norm_eps": 1e-06,
        "rope_parameters": {
            "full_attention": {"partial_rotary_factor": 0.25, "rope_theta": 1000000.0, "rope_type": "proportional"},
            "sliding_attention": {"rope_theta": 10000.0, "rope_type": "default"},
        },
        "sliding_window": 1024,
        "tie_word_embeddings": True,
        "top_k_experts": 8,
        "use_bidirectional_attention": "vision",
        "vocab_size": 262144,
    },
    "tie_word_embeddings": True,
}
PUBLISHED_LAYER = {
    *(f"experts.{name}_proj" for name in ("down", "gate_up")),
    *(f"mlp.{name}_proj.weight" for name in ("down", "gate", "up")),
    *(f"post_feedforward_layernorm{name}.weight" for name in ("", "_1", "_2")),
    *(f"pre_feedforward_layernorm{name}.weight" for name in ("", "_2")),
    *(f"router.{name}" for name in ("per_expert_scale", "proj.weight", "scale")),
    *(f"self_attn.{name}_norm.weight" for name in "kq"),
    *(f"self_attn.{name}_proj.weight" for name in "koqv"),
    "input_layernorm.weight",
    "layer_scalar",
    "post_attention_layernorm.weight",
}


def tiny(**changes: Any) -> DiffusionGemmaForBlockDiffusion:
    """A random model, every norm, scale and scalar of it too."""
    from transformers import DiffusionGemmaConfig, DiffusionGemmaForBlockDiffusion, DiffusionGemmaTextConfig

    text = DiffusionGemmaTextConfig(**{**TEXT, **changes})
    config = DiffusionGemmaConfig(text_config=text, vision_config=dict(VISION), canvas_length=CANVAS)
    torch.manual_seed(0)
    model = DiffusionGemmaForBlockDiffusion(config).double().eval().requires_grad_(False)
    model.set_experts_implementation("eager")  # the others take no float64
    decoder = model.model.decoder
    for name, tensor in [*decoder.named_parameters(), *decoder.named_buffers()]:
        if tensor.dim() == 1 and "inv_freq" not in name:
            tensor.copy_(1 + 0.3 * torch.randn_like(tensor))
        elif tensor.dim() > 1:
            tensor.copy_(torch.randn_like(tensor) * (1 if "embed" in name else 2) / tensor.shape[-1] ** 0.5)
    for own, layer in zip(decoder.layers, model.model.encoder.language_model.layers, strict=True):
        layer.layer_scalar.copy_(own.layer_scalar)
    return model


def config_of(model: DiffusionGemmaForBlockDiffusion) -> dict[str, Any]:
    """Its config.json."""
    config: dict[str, Any] = json.loads(model.config.to_json_string(use_diff=False))
    return config | {"architectures": ["DiffusionGemmaForBlockDiffusion"]}


def decoder_of(model: DiffusionGemmaForBlockDiffusion, dtype: torch.dtype = torch.float64, **changes: Any) -> Decoder:
    """Our decoder with its weights. changes: to its config.json."""
    decoder = Decoder(DIFFUSION_GEMMA, DIFFUSION_GEMMA.shape(config_of(model) | changes), dtype=dtype)
    state = own_names({n: t for n, t in published(model).items() if n.startswith("model.decoder.")})
    decoder.load_state_dict(state)
    return decoder.eval().requires_grad_(False)


def random_decoder(dtype: torch.dtype, **changes: Any) -> Decoder:
    """Of `small`, every norm, scale and scalar of it too random, without transformers."""
    torch.manual_seed(0)
    decoder = Decoder(DIFFUSION_GEMMA, DIFFUSION_GEMMA.shape(small(**changes)), dtype=dtype).requires_grad_(False)
    for name, tensor in decoder.state_dict().items():
        if tensor.dim() == 1:
            tensor.copy_(1 + 0.3 * torch.randn(tensor.shape))
        else:
            tensor.copy_(torch.randn(tensor.shape) * (1 if "embed" in name else 2) / tensor.shape[-1] ** 0.5)
    return decoder


def canvas_behind(decoder: Decoder, prompts: Tensor, begins: Tensor, length: int) -> NoiseCanvas:
    """With room for `length` tokens, behind prompts [b, n] that begin behind padding, which are not read yet."""
    canvas = NoiseShape(len(prompts), length, 1).canvas(decoder)
    canvas.keep(decoder, decoder.embedding.weight.new_empty(canvas.room(decoder)))
    canvas.start()
    canvas.move(0)
    canvas.place(prompts, begins, range(len(prompts)), seed=0)
    return canvas


def own_names(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of the published layout under our decoder's names, which has a matrix of each expert."""
    own: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        layer = name.rsplit(".experts.", 1)[0]
        if name.endswith("experts.gate_up_proj"):
            half = tensor.shape[1] // 2
            for expert, both in enumerate(tensor):
                own[f"{layer}.experts.{expert}.gate_proj.weight"] = both[:half]
                own[f"{layer}.experts.{expert}.up_proj.weight"] = both[half:]
        elif name.endswith("experts.down_proj"):
            own |= {f"{layer}.experts.{expert}.down_proj.weight": one for expert, one in enumerate(tensor)}
        elif name.endswith("router.scale"):
            own[name.replace("router.scale", "router.norm.weight")] = tensor
        elif name.endswith("router.per_expert_scale"):
            own[name.replace("router.per_expert_scale", "router.proj.expert_scale")] = tensor
        elif name.endswith("layer_scalar"):
            own[f"{name}.weight"] = tensor
        else:
            own[name] = tensor
    return own


def stacked(decoder: Decoder) -> dict[str, Tensor]:
    """A decoder's tensors in the published layout."""
    tensors = dict(decoder.state_dict())
    for view in decoder.family.views(decoder.shape):
        parts = [tensors.pop(name) for name in view.parts]
        whole = torch.cat(parts)
        tensors[view.name] = whole if view.stacked is None else whole.view(view.stacked, -1, whole.shape[1])
    return {name: tensor.contiguous() for name, tensor in tensors.items()}


def small(**changes: Any) -> Mapping[str, Any]:
    """The published config at few and small sizes."""
    return PUBLISHED | {"canvas_length": CANVAS, "text_config": PUBLISHED["text_config"] | TEXT | changes}


def published(model: DiffusionGemmaForBlockDiffusion) -> dict[str, Tensor]:
    """What a checkpoint of it holds: of tensors that are one, the decoder's; vision and the encoder's scalars too."""
    state = {name: t.contiguous() for name, t in model.state_dict().items() if name != "lm_head.weight"}
    text = "model.encoder.language_model."
    return {n: t for n, t in state.items() if not n.startswith(text) or n.endswith("layer_scalar")}
