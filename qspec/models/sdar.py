"""SDAR 1.7B to 8B (arXiv 2510.06303): Qwen3's layout, its queries and keys normed, denoised block by block.

A token sees its own block and all blocks before it; logits are not shifted. config.json as published may leave mask
token and length of a block to the code that runs the model: 151669 and 4. <|im_end|> ends an answer beside
<|endoftext|>, which config.json leaves to generation_config.json.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qspec.models.family import DecoderShape, Family
from qspec.models.fields import expect, integer
from qspec.models.qwen import BLOCKS, GLOBALS, PARTS, check_dense, dense_shape, named

MASK, BLOCK = 151669, 4
END_OF_TEXT, END_OF_TURN = 151643, 151645
MAX_BLOCK = 4096


def _recognises(config: Mapping[str, Any]) -> bool:
    return named(config, ("SDARForCausalLM",), "sdar")


HEAD_NORMS = {"attention.q_norm": "self_attn.q_norm", "attention.k_norm": "self_attn.k_norm"}


def shape(config: Mapping[str, Any], **own: Any) -> DecoderShape:
    """own: what a mixture of experts adds."""
    check_dense(config)
    expect(config, "attention_bias", False)
    eos = config.get("eos_token_id")
    given = {"mask_token_id": MASK, "pad_token_id": END_OF_TEXT} | {k: v for k, v in config.items() if v is not None}
    if eos == END_OF_TEXT:
        given["eos_token_id"] = [END_OF_TEXT, END_OF_TURN]
    block = integer(config, "block_size", 1, MAX_BLOCK, default=BLOCK)
    return dense_shape(given, qkv_bias=False, shift=False, sampler="block", block=block, qk_norm=True, **own)


SDAR = Family(
    name="sdar",
    recognises=_recognises,
    shape=shape,
    blocks=BLOCKS,
    parts={**PARTS, **HEAD_NORMS},
    globals=GLOBALS,
    hosted=True,
)
