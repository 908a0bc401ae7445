"""Fast-dLLM v2 1.5B and 7B (arXiv 2509.26328): Qwen2.5's layout, denoised in blocks of 32.

A token sees its own block and all blocks before it. Logits are shifted by one, so that the first token of a block is
predicted from the last one of the block before it. The mask token, 151665, stands in the published code alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qspec.models.family import DecoderShape, Family
from qspec.models.fields import integer
from qspec.models.qwen import BLOCKS, GLOBALS, PARTS, check_dense, dense_shape, named

MASK, PAD, BLOCK = 151665, 151643, 32
MAX_BLOCK = 4096


def _recognises(config: Mapping[str, Any]) -> bool:
    return named(config, ("Fast_dLLM_QwenForCausalLM",), "Fast_dLLM_Qwen")


def _shape(config: Mapping[str, Any]) -> DecoderShape:
    check_dense(config)
    given = {"mask_token_id": MASK, "pad_token_id": PAD} | {k: v for k, v in config.items() if v is not None}
    block = integer(config, "bd_size", 1, MAX_BLOCK, default=BLOCK)
    return dense_shape(given, qkv_bias=True, shift=True, sampler="block", block=block)


FAST_DLLM = Family(
    name="fast_dllm",
    recognises=_recognises,
    shape=_shape,
    blocks=BLOCKS,
    parts=PARTS,
    globals=GLOBALS,
    hosted=True,
)
