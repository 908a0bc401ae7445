"""Our decoder: one bidirectional transformer for every dense family, built from (Family, DecoderShape).

Its submodules carry the checkpoint's own names, so `state_dict()` is the published layout, except that tensors
which hold several linears are cut into these (`Family.fused`). Blocks are those of `qspec.models.decoder_block`.

Every token sees every real token (LLaDA, arXiv 2502.09992), or, where attention is block-causal, those of its own block
of `shape.block` tokens and of all blocks before it (SDAR, arXiv 2510.06303; Fast-dLLM v2, arXiv 2509.26328). Some
families norm each head's queries and keys before they are rotated. A finished text may also be read causally, and a
canvas of `shape.block` tokens behind it see all of it and itself (DiffusionGemma); blocks may differ in their heads,
rotary positions and in how far they look back (`Attention`). Norms and rotary
positions (arXiv 2104.09864, first half of a head paired with its second, or of the first channels of a head) are
computed in float32, or in float64 where the model is float64.

A pass may compute a part of the tokens alone and read the keys and values of the others as an earlier pass left
them (`Window`). Since every token sees every other, these are then not what they would be: who asks for a window
asks for an approximation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from qspec.errors import InputError
from qspec.models.decoder_block import DecoderBlock, RMSNorm, attach
from qspec.models.family import (
    CONDITIONING,
    Attention,
    DecoderShape,
    Family,
    Role,
)
from qspec.models.inputs import Normed, value_of, wide
from qspec.models.operations import (
    AttentionContext,
    KeyValues,
    Operations,
    gated,
)
from qspec.models.routing import Pools

ALL = slice(None)


class DecoderOutput(NamedTuple):
    """logits [b, t, vocab], in the model's dtype."""

    logits: Tensor


@dataclass(frozen=True)
class Window:
    """The part of a canvas that a pass computes. Of every other token it reads what earlier passes left in `kept`.

    tokens: from where to where. kept: one entry for each block; the pass writes its own keys and values there.
    """

    tokens: slice
    kept: tuple[KeyValues, ...]


class Decoder(nn.Module):
    """A whole model. Weights are torch's default initialisation until they are loaded or trained.

    absent: bool [vocab], True for ids that are no token of the tokenizer (`qspec.models.tokens.know_tokens`); None,
    all are. Logits are not touched by it, whoever makes probabilities of them is (`samplers.common.token_logits`).
    """

    absent: Tensor | None

    def __init__(
        self,
        family: Family,
        shape: DecoderShape,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.family, self.shape = family, shape
        self.register_buffer("absent", None, persistent=False)
        self.replace(Role("embedding"), _embedding(shape.vocab, shape.width, device, dtype))
        if shape.conditioning:
            self.replace(Role("conditioning.norm"), RMSNorm(shape.width, shape.norm_eps, device, dtype))
            for entry in family.conditioning(shape):
                size = (entry.in_features, entry.out_features)
                self.replace(entry.role, nn.Linear(*size, bias=False, device=device, dtype=dtype))
        blocks = nn.ModuleList(DecoderBlock(family, shape, index, device, dtype) for index in range(shape.layers))
        attach(self, family.blocks, blocks)
        self.replace(Role("final_norm"), RMSNorm(shape.width, shape.norm_eps, device, dtype))
        if not shape.tied:
            self.replace(Role("head"), nn.Linear(shape.width, shape.vocab, bias=False, device=device, dtype=dtype))

    @property
    def blocks(self) -> list[DecoderBlock]:
        return list(cast(nn.ModuleList, self.get_submodule(self.family.blocks)))  # type: ignore[arg-type]

    @property
    def operations(self) -> Operations:
        """Of all blocks."""
        return self.blocks[0].operations

    @property
    def device(self) -> torch.device:
        return cast(Tensor, self.final_norm.weight).device

    @property
    def embedding(self) -> nn.Module:
        return self.module(Role("embedding"))

    @property
    def final_norm(self) -> nn.Module:
        return self.module(Role("final_norm"))

    @property
    def head(self) -> nn.Module | None:
        """The LM head; None where it is tied to the embedding."""
        return None if self.shape.tied else self.module(Role("head"))

    def module(self, role: Role) -> nn.Module:
        """The module of a role, whether a block's part or a global one."""
        return self.get_submodule(self.family.module(role))

    def replace(self, role: Role, module: nn.Module) -> None:
        """Puts another module in a role's place, under the same checkpoint name."""
        attach(self, self.family.module(role), module)

    def embed(self, input_ids: Tensor) -> Tensor:
        """ids [b, t] -> x [b, t, d]."""
        return self._scaled(cast(Tensor, self.embedding(input_ids)))

    def _scaled(self, x: Tensor) -> Tensor:
        scale = self.shape.embedding_scale
        return x if scale == 1 else x * torch.tensor(scale, dtype=x.dtype)  # as rounded to x's dtype

    def told(self, logits: Tensor) -> Tensor:
        """logits [b, n, vocab] of a step -> s [b, n, d], what the next is told: softmax(logits) E, scaled as embedded
        tokens are."""
        table = cast(Tensor, self.embedding.weight)
        return self._scaled(wide(logits).softmax(-1).to(table.dtype) @ table)

    def embed_canvas(self, input_ids: Tensor, told: Tensor | None = None) -> Tensor:
        """ids [b, n] of a canvas -> x [b, n, d]. told: s [b, n, d] of the step before; None at the first, and s is 0.

        With e the embedded tokens: RMSNorm(e + mlp(RMSNorm(s))), the outer norm without gain. Of models without
        self-conditioning, e.
        """
        x = self.embed(input_ids)
        if not self.shape.conditioning:
            return x
        if told is not None:
            gate, up, down = (self.module(Role(part)) for part in CONDITIONING)
            h = self.module(Role("conditioning.norm"))(told)
            x = x + down(value_of(gated(gate, up, h, activation=self.shape.activation)))
        return Normed(x, x.new_ones(()), self.shape.norm_eps).value()

    def embed_rows(self, input_ids: Tensor, told: Tensor | None = None) -> Tensor:
        """ids of rows as `calibration_context` has them, [b, t], or [b, 2 t], noised and clean -> x, alike by d.

        told [b, t, d]: of the noised half, as in `embed_canvas`.
        """
        if not self.shape.conditioning:
            return self.embed(input_ids)
        noised, clean = input_ids.chunk(2, dim=1)
        return torch.cat((self.embed_canvas(noised, told), self.embed(clean)), dim=1)

    def finish(self, x: Tensor) -> Tensor:
        """x [..., d] after the last block -> logits [..., vocab]."""
        norm, head, cap = cast(RMSNorm, self.final_norm), self.head, self.shape.softcap
        x = self.operations.value_of(Normed(x, norm.weight, norm.eps))
        logits = cast(Tensor, head(x)) if head else functional.linear(x, cast(Tensor, self.embedding.weight))
        return logits if cap is None else (torch.tanh(wide(logits) / cap) * cap).to(logits.dtype)

    def context(
        self,
        ids_or_shape: Tensor | Sequence[int],
        attention_mask: Tensor | None = None,
        tokens: slice = ALL,
        positions: Tensor | None = None,
    ) -> AttentionContext:
        """Rotary tables and mask for ids [b, t], or for a shape (b, t) on the model's device.

        attention_mask: [b, t], nonzero = real. positions [1 or b, t]: of the tokens; None counts real tokens only, so
        that a padded row computes what the row alone would, wherever its padding stands. tokens: those that the pass
        computes. Errors: InputError for a mask of another shape or a row without tokens.
        """
        if isinstance(ids_or_shape, Tensor):
            (batch, length), device = ids_or_shape.shape, ids_or_shape.device
        else:
            (batch, length), device = ids_or_shape, self.device
        counted = torch.arange(length, device=device).unsqueeze(0)
        mask = None
        if attention_mask is not None:
            real = _padding(attention_mask, batch, length).to(device)
            if real.is_meta or not bool(real.all()):
                counted = (real.cumsum(-1) - 1).clamp(min=0)
                mask = real[:, None, None, :]
        places = counted if positions is None else positions.to(device)
        if self.shape.causal:
            real = torch.ones_like(counted, dtype=torch.bool) if mask is None else mask[:, 0, 0]
            return self._kinds(places[:, tokens], tokens, lambda window: _causal(counted, real, window)[:, :, tokens])
        if self.shape.block is None:
            return self._kinds(places[:, tokens], tokens, lambda _: mask)
        block = counted // self.shape.block
        seen = _before(block, block, own=True)[:, :, tokens]
        own = block if mask is None else block.masked_fill(~mask[:, 0, 0], -1)
        pools = self.pools(own[:, tokens].expand(batch, -1), length)
        return self._kinds(places[:, tokens], tokens, lambda _: seen if mask is None else seen & mask, pools)

    def pools(self, blocks: Tensor, tokens: int) -> Pools | None:
        """Of tokens in these blocks of their rows [b, n], -1 for padding, which pools they are where routers have a
        capacity. tokens: of which the blocks are."""
        size, experts = self.shape.block, self.shape.experts
        if size is None or experts is None or not experts.capacity:
            return None
        rows, each = torch.arange(len(blocks), device=blocks.device), -(-tokens // size) + 1
        return Pools((rows[:, None] * each + blocks + 1).flatten(), len(blocks) * each)

    def _kinds(
        self,
        positions: Tensor,
        tokens: slice,
        seen: Callable[[int | None], Tensor | None],
        pools: Pools | None = None,
    ) -> AttentionContext:
        """Of a pass over tokens at positions [b, n]. seen: gives the mask of blocks with a window."""
        first, *others = (
            AttentionContext(*self._rotary(positions, how), seen(how.window), tokens) for how in self.shape.kinds
        )
        return replace(first, others=tuple(others), pools=pools)

    def rotary_tables(self, length: int) -> tuple[tuple[Tensor, Tensor], ...]:
        """Of each kind of attention cos and sin of the positions 0 .. length - 1, float32 [length, channels of a head
        that are rotated]."""
        positions = torch.arange(length, device=self.device).unsqueeze(0)
        tables = (self._rotary(positions, how) for how in self.shape.kinds)
        return tuple((cos[0, 0], sin[0, 0]) for cos, sin in tables)

    def calibration_context(self, ids: Tensor) -> AttentionContext:
        """Of rows [b, t] without padding that the model denoises; a block-causal model's hold a text twice, noised and
        clean."""
        if self.shape.block is None:
            return self.context(ids)
        return self.noised_context(torch.ones_like(ids.chunk(2, dim=1)[0], dtype=torch.bool))

    def noised_context(self, real: Tensor) -> AttentionContext:
        """Of a block-causal model and a text, real [b, t], twice in a row, ids [b, 2 t]: noised, then clean.

        What the model is trained on, and what it computes while it generates: a block with masks sees itself and the
        clean blocks before it, a clean block itself and those before (arXiv 2503.09573, section B.6; no noised block
        is seen by another). Positions, and padding that is not real, are alike in both halves.
        """
        assert self.shape.block is not None
        counted = (real.cumsum(-1) - 1).clamp(min=0)
        block = counted // self.shape.block
        starts = (block * self.shape.block)[:, :, None]
        same, before = block[:, None, :, None] == block[:, None, None, :], _before(block, block, own=False)

        def seen(window: int | None) -> Tensor:
            clean_before = before & near(starts, counted[:, None], window)[:, None]
            clean = _causal(counted, real, window) if self.shape.causal else same | before
            both = torch.cat((torch.cat((same, clean_before), -1), torch.cat((torch.zeros_like(same), clean), -1)), -2)
            return both & torch.cat((real, real), 1)[:, None, None, :]

        own, length = block.masked_fill(~real, -1), real.shape[1]
        noised = torch.where(real, own + -(-length // self.shape.block), -1)
        pools = self.pools(torch.cat((noised, own), 1), 2 * (length + self.shape.block))
        return self._kinds(torch.cat((counted, counted), 1), ALL, seen, pools)

    def window(self, batch: int, length: int) -> Window:
        """All tokens of a canvas [b, t], with room to keep their keys and values."""
        of = cast(Tensor, self.embedding.weight)
        shapes = ((batch, block.kv_heads, length, block.head_width) for block in self.blocks)
        return Window(ALL, tuple(KeyValues(of.new_empty(shape), of.new_empty(shape)) for shape in shapes))

    def hidden(self, input_ids: Tensor, attention_mask: Tensor | None = None, window: Window | None = None) -> Tensor:
        """ids [b, t] -> x [b, t, d] after the last block; `finish` turns any slice of it into logits.

        With a window x [b, n, d] of its tokens alone, and their keys and values are kept there. The other tokens
        are as the passes before left them, so the first pass of a canvas is one over all of it.
        """
        tokens, kept = (ALL, None) if window is None else (window.tokens, window.kept)
        return self.through(input_ids[:, tokens], self.context(input_ids, attention_mask, tokens), kept)

    def through(self, input_ids: Tensor, context: AttentionContext, kept: Sequence[KeyValues] | None = None) -> Tensor:
        """ids [b, n] of the context's tokens -> x [b, n, d] after the last block; nothing waits for the device."""
        return self._passed(lambda: self.embed(input_ids), context, kept)

    def canvas_through(
        self,
        input_ids: Tensor,
        context: AttentionContext,
        kept: Sequence[KeyValues] | None = None,
        told: Tensor | None = None,
    ) -> Tensor:
        """The same of a canvas. told: as `embed_canvas`."""
        return self._passed(lambda: self.embed_canvas(input_ids, told), context, kept)

    def rows_through(self, input_ids: Tensor, context: AttentionContext, told: Tensor | None = None) -> Tensor:
        """The same of `embed_rows`."""
        return self._passed(lambda: self.embed_rows(input_ids, told), context, None)

    def _passed(
        self, embedded: Callable[[], Tensor], context: AttentionContext, kept: Sequence[KeyValues] | None
    ) -> Tensor:
        blocks = self.blocks

        def call() -> Tensor:
            x = embedded()
            for index, block in enumerate(blocks):
                x = block(x, context if kept is None else replace(context, kept=kept[index]))
            return x

        return self.operations.passed(call)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> DecoderOutput:
        return DecoderOutput(self.finish(self.hidden(input_ids, attention_mask)))

    @staticmethod
    def _rotary(positions: Tensor, how: Attention) -> tuple[Tensor, Tensor]:
        """cos and sin of position * theta^(-2i / width), i < width / 2, for positions [b, t] and the width of what is
        rotated of a head; of position * 0 for pairs that do not turn."""
        width = how.rotary_width
        half = torch.arange(0, width, 2, device=positions.device, dtype=torch.float32)
        frequencies = 1.0 / (how.rope_theta ** (half / width))
        frequencies[how.turning :] = 0
        angles = positions.unsqueeze(-1).float() * frequencies  # [b, t, width / 2]
        angles = torch.cat((angles, angles), dim=-1).unsqueeze(1)  # both halves turn alike
        return angles.cos(), angles.sin()


def _padding(attention_mask: Tensor, batch: int, length: int) -> Tensor:
    if tuple(attention_mask.shape) != (batch, length):
        raise InputError(
            f"attention_mask has shape {list(attention_mask.shape)}, the ids [{batch}, {length}]",
            hint="give one value for each token: 1 for a real token, 0 for padding",
        )
    real = attention_mask != 0
    if not real.is_meta and not bool(real.any(-1).all()):
        raise InputError("attention_mask marks every token of a row as padding", hint="drop the empty row")
    return real


def near(query: Tensor, key: Tensor, window: int | None) -> Tensor:
    """Whether keys lie less than `window` positions before a query, or behind it."""
    return torch.ones_like(key, dtype=torch.bool) if window is None else query - key < window


def _causal(counted: Tensor, real: Tensor, window: int | None) -> Tensor:
    """bool [b, 1, t, t]: whether a query sees a key: a real token, itself or before it, within the window. counted,
    real: [b, t]."""
    query, key = counted[:, :, None], counted[:, None, :]
    return ((key <= query) & real[:, None, :] & near(query, key, window))[:, None]


def _before(query: Tensor, key: Tensor, own: bool) -> Tensor:
    """bool [b, 1, n, t]: whether a key's block [b, t] comes before a query's [b, n], or is its own."""
    query, key = query[:, None, :, None], key[:, None, None, :]
    return key <= query if own else key < query


def _embedding(rows: int, columns: int, device: torch.device | str | None, dtype: torch.dtype | None) -> nn.Embedding:
    """torch's own and its initialisation, which on the meta device would import torch._dynamo, 1.4 s of a process."""
    weight = torch.empty(rows, columns, device=device, dtype=dtype)
    if not weight.is_meta:
        nn.init.normal_(weight)
    return nn.Embedding(rows, columns, _weight=weight)
