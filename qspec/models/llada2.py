"""LLaDA2.0, 2.1 and 2.2, mini and flash (arXiv 2512.15745): blocks of 32, one shared and 256 routed experts.

A token sees its own block and all blocks before it. Sigmoid scores; a bias for the choice alone; experts from the best
4 of 8 groups, of 2.2 from the best 48 of all for the token's block; weights divided by their sum, times 2.5. The first
block is dense. Half of a head's channels have rotary positions. Queries, keys and values are one tensor in the
checkpoint. The mask token stands in the published code alone, as may the tokens by which 2.2 deletes and inserts.
<|role_end|> ends 2.2's answers beside <|endoftext|>, which config.json leaves to generation_config.json.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qspec.models.family import DecoderShape, Experts, Family
from qspec.models.fields import MAX_EXPERTS, MAX_FFN, MAX_LAYERS, MAX_VOCAB, PARTIAL, bad, expect, flag, integer, real
from qspec.models.qwen import MIXED, PARTS, check_dense, dense_shape, experts_of, named

MASK, END, BLOCK = 156895, 156892, 32
END_OF_TURN = 156900  # of 2.2
EDITS = {"delete_token_id": 156930, "split_token_id": 156931}  # of 2.2
MAX_BLOCK = 4096
MAX_SCALE = 1000.0


def _recognises(config: Mapping[str, Any]) -> bool:
    return named(config, ("LLaDA2MoeModelLM",), "llada2_moe")


def _check_variant(config: Mapping[str, Any]) -> None:
    check_dense(config, "use_qkv_bias", "use_bias", "norm_head")
    expect(config, "use_qk_norm", True)
    expect(config, "norm_topk_prob", True)
    expect(config, "score_function", "sigmoid")
    expect(config, "num_nextn_predict_layers", 0)


def _experts(config: Mapping[str, Any]) -> Experts:
    ffn = integer(config, "moe_intermediate_size", 1, MAX_FFN)
    capacity = integer(config, "expert_capacity", 0, MAX_EXPERTS, default=0)
    groups = 1 if capacity else integer(config, "n_group", 1, MAX_FFN, default=1)
    return experts_of(
        config,
        ffn=ffn,
        shared=ffn * integer(config, "num_shared_experts", 0, MAX_FFN, default=0),
        dense=integer(config, "first_k_dense_replace", 0, MAX_LAYERS, default=0),
        scoring="sigmoid",
        bias=flag(config, "moe_router_enable_expert_bias", default=True),
        groups=groups,
        top_groups=1 if capacity else integer(config, "topk_group", 1, groups, default=groups),
        capacity=capacity,
        normalized=True,
        scale=real(config, "routed_scaling_factor", 0, MAX_SCALE, default=1),
    )


def _edit_tokens(config: Mapping[str, Any], experts: Experts) -> tuple[int, ...]:
    if not experts.capacity and all(config.get(name) is None for name in EDITS):
        return ()
    last = integer(config, "vocab_size", 1, MAX_VOCAB) - 1
    delete, insert = (integer(config, name, 0, last, default=token) for name, token in EDITS.items())
    if delete == insert:
        raise bad("split_token_id", f"is {insert}, which is delete_token_id too")
    return delete, insert


def _shape(config: Mapping[str, Any]) -> DecoderShape:
    _check_variant(config)
    rotary, experts = real(config, PARTIAL, 0, 1 + 1e-9, default=1), _experts(config)
    ends = [END, END_OF_TURN] if experts.capacity else END
    given = {"mask_token_id": MASK, "eos_token_id": ends, "pad_token_id": END}
    given |= {k: v for k, v in config.items() if v is not None}
    shape = dense_shape(
        given,
        qkv_bias=False,
        shift=False,
        sampler="block",
        block=integer(config, "block_size", 1, MAX_BLOCK, default=BLOCK),
        qk_norm=True,
        rotary=rotary,
        experts=experts,
        edit_tokens=_edit_tokens(config, experts),
    )
    if shape.rotary_width % 2 or not shape.rotary_width:
        raise bad(PARTIAL, f"is {rotary:g}; rotary positions need an even part of heads of {shape.head_width}")
    expect(config, "rotary_dim", shape.rotary_width)
    return shape


LLADA2 = Family(
    name="llada2",
    recognises=_recognises,
    shape=_shape,
    blocks="model.layers",
    parts={
        **MIXED,
        **{f"mlp.{name}": PARTS[f"mlp.{name}"] for name in ("gate", "up", "down")},
        **{f"mlp.shared.{name}": f"mlp.shared_experts.{name}_proj" for name in ("gate", "up", "down")},
        "attention.q": "attention.query_key_value.q",
        "attention.k": "attention.query_key_value.k",
        "attention.v": "attention.query_key_value.v",
        "attention.o": "attention.dense",
        "attention.q_norm": "attention.query_layernorm",
        "attention.k_norm": "attention.key_layernorm",
    },
    globals={"embedding": "model.word_embeddings", "final_norm": "model.norm", "head": "lm_head"},
    experts=Experts(count=256, top_k=8, ffn=0, shared=1, dense=1, bias=True),
    fused={"attention.query_key_value": ("attention.q", "attention.k", "attention.v")},
)
