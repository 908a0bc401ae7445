"""Dream-7B, Dream-Coder and DiffuCoder (arXiv 2508.15487): Qwen2's layout, read in both directions.

Grouped queries, biases on q, k and v alone, an untied head, full attention. The models grew out of an
autoregressive one and kept its alignment: logits at position i predict token i + 1 (`shift`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qspec.models.family import DecoderShape, Family
from qspec.models.fields import bad, expect, spelled
from qspec.models.qwen import BLOCKS, GLOBALS, PARTS, SPELLINGS, check_dense, dense_shape, named

UNSUPPORTED = ("use_mrope", "mlp_bias", "use_qk_norm")


def _recognises(config: Mapping[str, Any]) -> bool:
    return named(config, ("DreamModel",), "Dream")


def _check_variant(config: Mapping[str, Any]) -> None:
    """The layout, and Qwen2 that it came from, have switches that our decoder does not compute."""
    check_dense(config, *UNSUPPORTED)
    expect(config, "attention_bias", True)
    if config.get("bd_size") is not None or config.get("block_size") is not None:
        raise bad("bd_size", "or block_size asks for block-causal attention; Dream's is full")


def _shape(config: Mapping[str, Any]) -> DecoderShape:
    _check_variant(spelled(config, SPELLINGS))
    shape = dense_shape(config, qkv_bias=True, shift=True, sampler="dream")
    expect(config, "head_dim", shape.width // shape.heads)
    return shape


DREAM = Family(
    name="dream",
    recognises=_recognises,
    shape=_shape,
    blocks=BLOCKS,
    parts=PARTS,
    globals=GLOBALS,
    hosted=True,
)
