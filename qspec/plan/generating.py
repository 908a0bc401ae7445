"""What generating text takes of a GPU's memory: an estimate from sizes alone, for the plan and for a loaded model."""

from __future__ import annotations

from dataclasses import dataclass

from qspec.errors import UsageError
from qspec.models.family import DecoderShape
from qspec.plan.modules import FLOAT_BITS

CANVAS, BLOCK = 1024, 32  # tokens, where nobody says how many
LOGITS = 1 << 25  # that a sampler holds at once (`samplers.common.HEAD_VALUES`)
LOGIT_BYTES = 12  # in float32 themselves, their softmax, and what checks that they are finite
FIXED = 64 << 20  # workspaces of cuBLAS and of split-K


@dataclass(frozen=True)
class TextSizes:
    """Texts that are generated at once. canvas: tokens of prompt and text. block: of a row, whose logits are computed
    together. cache: whether keys and values are kept. rows: of a pass; guidance makes it two for a text."""

    batch: int
    canvas: int
    block: int = BLOCK
    cache: bool = False
    guided: bool = False

    @classmethod
    def of(cls, shape: DecoderShape, batch: int = 1, canvas: int | None = None) -> TextSizes:
        """canvas None: `CANVAS`, or as long as the model's. Errors: UsageError for a canvas that it does not have."""
        canvas = min(CANVAS, shape.max_length) if canvas is None else canvas
        for name, value in (("batch", batch), ("canvas", canvas)):
            if value < 1:
                raise UsageError(f"{name} is {value}; it must be at least 1")
        if canvas > shape.max_length:
            raise UsageError(f"canvas is {canvas}, and the model has {shape.max_length} tokens")
        return cls(batch, canvas, min(BLOCK, canvas), cache=shape.block is not None)

    @property
    def rows(self) -> int:
        return self.batch * (1 + self.guided)

    def __str__(self) -> str:
        return f"{self.batch} text{'s' * (self.batch > 1)} of {self.canvas:,} tokens"


@dataclass(frozen=True)
class GeneratingMemory:
    """Bytes at the peak. A step needs activations, then logits; memory that the allocator keeps is not counted."""

    weights: int
    activations: int
    logits: int
    cache: int
    fixed: int = FIXED

    @property
    def step(self) -> int:
        return max(self.activations, self.logits)

    @property
    def total(self) -> int:
        return self.weights + self.step + self.cache + self.fixed


def activation_bytes(shape: DecoderShape, tokens: int) -> int:
    """In 16 bits at the widest moment of a block: the residual stream with its norm, gate, up and their product.

    Less where one GEMM gives that and cuBLAS has no part in it. The weights of gate and up in 16 bits, where a
    weight-only GEMM writes them down for cuBLAS (docs/kernels.md), are gone before that moment, and take no more than
    the GEMM, which is not there yet, from as many tokens on as twice the width.
    """
    return tokens * (2 * shape.width + 3 * shape.active_ffn) * FLOAT_BITS // 8


def generating_memory(shape: DecoderShape, weights: int, texts: TextSizes) -> GeneratingMemory:
    """What a GPU holds while texts are denoised. weights: bytes of the model's tensors.

    A cache keeps keys, values and hidden states of every token; a block-causal model always does, without the states,
    and has the logits of one of its blocks. A temperature above 0 takes random numbers for every logit besides.
    Measured peaks of LLaDA-8B are met within 5 % (tests/test_plan.py).
    """
    tokens = texts.rows * texts.canvas
    activations = activation_bytes(shape, tokens)
    logits = min(texts.rows * min(texts.block, shape.block or texts.block) * shape.vocab, LOGITS)
    kept = shape.key_values + (shape.width if shape.block is None else 0)
    return GeneratingMemory(
        weights,
        activations,
        logits * LOGIT_BYTES,
        tokens * kept * FLOAT_BITS // 8 if texts.cache else 0,
    )
