"""Our decoder: one bidirectional transformer for every dense family, built from (Family, DecoderShape).

Its submodules carry the checkpoint's own names, so `state_dict()` is the published layout, except that tensors
which hold several linears are cut into these (`Family.fused`). One block, for
x [b, t, d]:

    h = RMSNorm(x)    q, k, v = h Wq^T, h Wk^T, h Wv^T
    x <- x + softmax(rope(q) rope(k)^T / sqrt(head width)) v Wo^T
    h = RMSNorm(x)    x <- x + mlp(h),  mlp(h) = (silu(h Wg^T) * (h Wu^T)) Wd^T

A mixture of experts has sum_e w_e mlp_e(h) over the experts that a router chooses (`qspec.models.routing`), plus that
of a shared one, in the place of mlp(h).

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
from itertools import pairwise
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from qspec.errors import InputError
from qspec.models.family import (
    CONDITIONING,
    ROUTER,
    ROUTER_BIAS,
    ROUTER_SCALE,
    SCALAR,
    Attention,
    DecoderShape,
    Experts,
    Family,
    Role,
)
from qspec.models.inputs import LayerInput, Normed, plus, value_of, wide
from qspec.models.operations import (
    TORCH,
    AttentionContext,
    KeyValues,
    Operations,
    gated,
    project,
    project_onto,
)
from qspec.models.routing import Pools, Routing, by_expert, route

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


Linears = Callable[[str], nn.Module]  # a block's linears by part


class RMSNorm(nn.Module):
    """`qspec.models.inputs.Normed` with a gain to learn."""

    def __init__(
        self,
        width: int,
        eps: float,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width, device=device, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        return Normed(x, self.weight, self.eps).value()


class Router(nn.Linear):
    """h [..., d] -> logits [..., count] in h's dtype. [count] each, where it has them: `expert_bias` is for the choice
    alone, `expert_scale` for the weights."""

    def __init__(self, width: int, how: Experts, device: torch.device | str | None, dtype: torch.dtype | None) -> None:
        super().__init__(width, how.count, bias=False, device=device, dtype=dtype)
        for name, wanted, fill in ((ROUTER_BIAS, how.bias, 0.0), (ROUTER_SCALE, how.beside, 1.0)):
            vector = torch.full((how.count,), fill, device=device, dtype=dtype) if wanted else None
            self.register_buffer(name, vector)

    def forward(self, h: Tensor) -> Tensor:
        return functional.linear(h, self.weight.to(h.dtype))


class DecoderBlock(nn.Module):
    """One transformer block; its linears and norms are reached by their role within it: "attention.q", "mlp.norm",
    "mlp.experts[3].down".

    Its own attributes must not be called as a checkpoint calls a submodule (`mlp`, `self_attn`).
    """

    def __init__(
        self,
        family: Family,
        shape: DecoderShape,
        index: int,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.paths = family.paths(shape, index)
        self.shape, self.how, self.mixture = shape, shape.attention(index), shape.mixture(index)
        self.heads, self.kv_heads, self.head_width = self.how.heads, self.how.kv_heads, self.how.head_width
        self.kind = shape.kinds.index(self.how)
        self.operations = TORCH  # whoever runs the model may have faster ones
        self.grouped: nn.Module | None = None  # of a mixture all at once, of (x, experts, weights), where there is one
        for entry in family.linears(shape, index):
            rows, columns = entry.out_features, entry.in_features
            if self.mixture is not None and entry.role.part == ROUTER:
                linear: nn.Linear = Router(columns, self.mixture, device, dtype)
            else:
                linear = nn.Linear(columns, rows, bias=entry.bias, device=device, dtype=dtype)
            _attach(self, self.paths[entry.role.local], linear)
        for role in family.norms_of(index):
            norm = RMSNorm(family.norm_width(role, shape), shape.norm_eps, device, dtype)
            _attach(self, self.paths[role.local], norm)

    def part(self, name: str) -> nn.Module:
        return self.get_submodule(self.paths[name])

    def replace(self, name: str, module: nn.Module) -> None:
        """Puts another module in a part's place, under the same checkpoint name. A router's vectors stay where they
        are."""
        if name == ROUTER:
            for vector in (ROUTER_BIAS, ROUTER_SCALE):
                if not hasattr(module, vector):
                    module.register_buffer(vector, getattr(self.part(name), vector, None))
        _attach(self, self.paths[name], module)

    def forward(self, x: Tensor, context: AttentionContext, linears: Linears | None = None) -> Tensor:
        """x [b, t, d] -> [b, t, d]. linears: what computes each linear in this pass; None, the block's own."""
        return self.fed(self.attended(x, context, linears), linears, context.pools)

    def attended(self, x: Tensor, context: AttentionContext, linears: Linears | None = None) -> Tensor:
        """x [b, t, d] -> [b, t, d] behind the attention, with the residual: the first half of the block."""
        return self.attend(self.normed("attention.norm", x), context, x, linears)

    def fed(self, x: Tensor, linears: Linears | None = None, pools: Pools | None = None) -> Tensor:
        """x [..., d] behind the attention -> [..., d], with the residual: the second half, token by token but where
        they share experts."""
        y = self.feed_forward(self.normed("mlp.norm", x), x, linears, pools=pools)
        return y * cast(Tensor, self.part(SCALAR).weight).to(y.dtype) if SCALAR in self.paths else y

    def attend(
        self,
        h: LayerInput,
        context: AttentionContext,
        residual: Tensor | None = None,
        linears: Linears | None = None,
    ) -> Tensor:
        """h [b, t, d], normed or to be normed -> [b, t, d], added to the residual if there is one."""
        linear, own, context = linears or self.part, self.operations, context.of(self.kind)
        names = "qkv" if self.how.values else "qk"
        q, *kv = project([linear(f"attention.{name}") for name in names], h, own.value_of)
        q, k, v = self._heads(q, self.heads), *(self._heads(x, self.kv_heads) for x in (kv[0], kv[-1]))
        if self.shape.qk_norm:
            q, k = self.part("attention.q_norm")(q), self.part("attention.k_norm")(k)
        if self.shape.values_normed:
            v = Normed(v, v.new_ones(()), self.shape.norm_eps).value()
        q, k, v = own.rotate_and_keep(q, k, v, context)
        mixed = own.attention(q, k, v, context.mask, self.shape.score_scale)
        mixed = mixed.transpose(1, 2).flatten(2)  # [b, t, heads * head width]
        return self._added("attention.post_norm", residual, linear("attention.o"), mixed)

    def feed_forward(
        self,
        h: LayerInput,
        residual: Tensor | None = None,
        linears: Linears | None = None,
        chosen: Tensor | None = None,
        pools: Pools | None = None,
    ) -> Tensor:
        """h [..., d], normed or to be normed -> [..., d], added to the residual if there is one. Where experts stand
        beside the MLP, to be normed: they have norms of their own.

        chosen: int64 [tokens, top_k], the experts where they are decided already.
        """
        linear = linears or self.part
        if self.mixture is None:
            return self._mlp("mlp", h, linear, residual)
        rows, read = self.routed(h)
        y = self.mixed(rows, self.routing(self.logits(read, linear), chosen, pools), linears)
        if self.mixture.beside:
            assert isinstance(h, Normed)
            y = self.dense(h, linear) + self.behind_experts(y).view(h.x.shape)
            return plus(residual, self.part("mlp.post_norm")(y))
        if self.mixture.shared:
            y = self._mlp("mlp.shared", rows, linear, y)
        return plus(residual, y.view((h if isinstance(h, Tensor) else h.x).shape))

    def routed(self, h: LayerInput) -> tuple[Tensor, Tensor]:
        """What experts and router read, [n, d] each, of h as `feed_forward` takes it: the MLP's input; or, where they
        stand beside it, RMSNorm(x) and RMSNorm(x) / sqrt(d) of x behind the attention, by norms of their own."""
        assert self.mixture is not None
        if not self.mixture.beside:
            x = self.operations.value_of(h)
            rows = x.reshape(-1, x.shape[-1])
            return rows, rows
        assert isinstance(h, Normed)
        x = h.x.reshape(-1, h.x.shape[-1])
        router = self.operations.value_of(self.normed("mlp.router_norm", x)) * self.shape.width**-0.5
        return self.operations.value_of(self.normed("mlp.experts_norm", x)), router

    def dense(self, h: LayerInput, linears: Linears | None = None) -> Tensor:
        """What the MLP computes beside which experts stand, behind its norm: h [..., d] -> [..., d]."""
        return cast(Tensor, self.part("mlp.dense_post_norm")(self._mlp("mlp", h, linears or self.part)))

    def behind_experts(self, y: Tensor) -> Tensor:
        """What experts that stand beside an MLP have computed, behind their norm."""
        return cast(Tensor, self.part("mlp.experts_post_norm")(y))

    def logits(self, x: Tensor, linears: Linears | None = None) -> Tensor:
        """The router's, float32 or float64 [n, count], for x [n, d], normed."""
        return cast(Tensor, (linears or self.part)(ROUTER)(wide(x)))

    def routing(self, logits: Tensor, chosen: Tensor | None = None, pools: Pools | None = None) -> Routing:
        """What the router makes of its logits. chosen: as `feed_forward`."""
        assert self.mixture is not None
        bias, scales = (cast("Tensor | None", getattr(self.part(ROUTER), name)) for name in (ROUTER_BIAS, ROUTER_SCALE))
        return route(logits, self.mixture, bias, chosen, scales, pools)

    def mixed(self, x: Tensor, routing: Routing, linears: Linears | None = None) -> Tensor:
        """sum_e w_e mlp_e(x) of x [n, d], normed -> [n, d]; the sum in float32, in the order of the routing.

        Expert by expert, each on its tokens alone, where they are not `grouped`.
        """
        assert self.mixture is not None
        if self.grouped is not None and linears is None:
            return cast(Tensor, self.grouped(x, routing.experts, routing.weights))
        linear, top_k = linears or self.part, self.mixture.top_k
        places, offsets = by_expert(routing.experts, self.mixture.count)
        outputs = x.new_empty(places.numel(), x.shape[-1])
        for expert, (first, last) in enumerate(pairwise(offsets.tolist())):
            if first < last:
                own = places[first:last]
                outputs[own] = self._mlp(f"mlp.experts[{expert}]", x[own // top_k], linear)
        weighted = wide(outputs).view(-1, top_k, x.shape[-1]) * routing.weights[:, :, None]
        return weighted.sum(1).to(x.dtype)

    def hidden(self, name: str, x: LayerInput, linears: Linears | None = None) -> LayerInput:
        """f(gate) up of an MLP ("mlp", "mlp.experts[3]"), or what it is computed of; f is its activation."""
        linear = linears or self.part
        gate, up = linear(f"{name}.gate"), linear(f"{name}.up")
        return gated(gate, up, x, self.operations.value_of, self.shape.activation)

    def _mlp(self, name: str, x: LayerInput, linear: Linears, residual: Tensor | None = None) -> Tensor:
        return project_onto(residual, linear(f"{name}.down"), self.hidden(name, x, linear), self.operations.value_of)

    def _added(self, norm: str, residual: Tensor | None, linear: nn.Module, given: LayerInput) -> Tensor:
        """residual + the linear's output, normed first where the block has that norm."""
        if norm not in self.paths:
            return project_onto(residual, linear, given, self.operations.value_of)
        return plus(residual, self.part(norm)(project_onto(None, linear, given, self.operations.value_of)))

    def normed(self, part: str, x: Tensor) -> Normed:
        """x before one of the block's norms."""
        norm = cast(RMSNorm, self.part(part))
        return Normed(x, norm.weight, norm.eps)

    def _heads(self, x: Tensor, heads: int) -> Tensor:
        return x.view(*x.shape[:-1], heads, self.head_width).transpose(1, 2)  # [b, heads, t, head width]


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
        _attach(self, family.blocks, blocks)
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
        _attach(self, self.family.module(role), module)

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


def _attach(root: nn.Module, path: str, module: nn.Module) -> None:
    """Sets root.path = module, making plain containers on the way."""
    *parents, name = path.split(".")
    for parent in parents:
        child = root._modules.get(parent)
        if child is None:
            child = nn.Module()
            root.add_module(parent, child)
        root = child
    root.add_module(name, module)
