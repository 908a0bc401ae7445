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
families norm each head's queries and keys before they are rotated. Norms and rotary
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
from typing import NamedTuple, Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from qspec.errors import InputError
from qspec.models.family import ROUTER, ROUTER_BIAS, DecoderShape, Family, Role
from qspec.models.inputs import Gated, LayerInput, Normed, plus, value_of, wide
from qspec.models.likeliest import Measure, likeliest
from qspec.models.routing import Routing, by_expert, route

ALL = slice(None)


class DecoderOutput(NamedTuple):
    """logits [b, t, vocab], in the model's dtype."""

    logits: Tensor


class KeyValues(NamedTuple):
    """What one block keeps of a canvas: rotated keys and values, [b, kv heads, t, head width] each."""

    keys: Tensor
    values: Tensor


@dataclass(frozen=True)
class Window:
    """The part of a canvas that a pass computes. Of every other token it reads what earlier passes left in `kept`.

    tokens: from where to where. kept: one entry for each block; the pass writes its own keys and values there.
    """

    tokens: slice
    kept: tuple[KeyValues, ...]


@dataclass(frozen=True)
class AttentionContext:
    """What the blocks of one forward pass are told.

    cos, sin: float32 [1 or b, 1, n, channels of a head that are rotated], of the n tokens that the pass computes. mask:
    bool [1 or b, 1, 1 or n, t], True where a query sees a key; None when each sees all. tokens: which of the t these n
    are, a slice or int64 [n]. kept: what this block keeps of all t; None where the pass computes all and keeps nothing.
    """

    cos: Tensor
    sin: Tensor
    mask: Tensor | None
    tokens: slice | Tensor
    kept: KeyValues | None = None

    def attended(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of all t tokens, from those of the n that are computed, which are kept."""
        if self.kept is None:
            return k, v
        self.kept.keys[:, :, self.tokens] = k
        self.kept.values[:, :, self.tokens] = v
        return self.kept


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
    """h [..., d] -> logits [..., count] in h's dtype. `expert_bias` [count], if it has one, is for the choice alone."""

    def __init__(
        self, width: int, count: int, bias: bool, device: torch.device | str | None, dtype: torch.dtype | None
    ) -> None:
        super().__init__(width, count, bias=False, device=device, dtype=dtype)
        self.register_buffer(ROUTER_BIAS, torch.zeros(count, device=device, dtype=dtype) if bias else None)

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
        self.heads, self.kv_heads, self.head_width = shape.heads, shape.kv_heads, shape.head_width
        self.qk_norm = shape.qk_norm
        self.mixture = shape.mixture(index)
        self.operations = TORCH  # whoever runs the model may have faster ones
        self.experts: nn.Module | None = None  # of a mixture all at once, of (x, experts, weights), where there is one
        for entry in family.linears(shape, index):
            rows, columns = entry.out_features, entry.in_features
            if self.mixture is not None and entry.role.part == ROUTER:
                linear: nn.Linear = Router(columns, rows, self.mixture.bias, device, dtype)
            else:
                linear = nn.Linear(columns, rows, bias=entry.bias, device=device, dtype=dtype)
            _attach(self, self.paths[entry.role.local], linear)
        for role in family.norms_of(index):
            norm = RMSNorm(family.norm_width(role, shape), shape.norm_eps, device, dtype)
            _attach(self, self.paths[role.local], norm)

    def part(self, name: str) -> nn.Module:
        return self.get_submodule(self.paths[name])

    def replace(self, name: str, module: nn.Module) -> None:
        """Puts another module in a part's place, under the same checkpoint name. A router's bias stays where it is."""
        if name == ROUTER and not hasattr(module, ROUTER_BIAS):
            module.register_buffer(ROUTER_BIAS, getattr(self.part(name), ROUTER_BIAS, None))
        _attach(self, self.paths[name], module)

    def forward(self, x: Tensor, context: AttentionContext, linears: Linears | None = None) -> Tensor:
        """x [b, t, d] -> [b, t, d]. linears: what computes each linear in this pass; None, the block's own."""
        return self.fed(self.attended(x, context, linears), linears)

    def attended(self, x: Tensor, context: AttentionContext, linears: Linears | None = None) -> Tensor:
        """x [b, t, d] -> [b, t, d] behind the attention, with the residual: the first half of the block."""
        return self.attend(self._normed("attention.norm", x), context, x, linears)

    def fed(self, x: Tensor, linears: Linears | None = None) -> Tensor:
        """x [..., d] behind the attention -> [..., d], with the residual: the second half, token by token."""
        return self.feed_forward(self._normed("mlp.norm", x), x, linears)

    def attend(
        self,
        h: LayerInput,
        context: AttentionContext,
        residual: Tensor | None = None,
        linears: Linears | None = None,
    ) -> Tensor:
        """h [b, t, d], normed or to be normed -> [b, t, d], added to the residual if there is one."""
        linear, own = linears or self.part, self.operations
        q, k, v = project([linear(f"attention.{name}") for name in "qkv"], h, own.value_of)
        q, k, v = self._heads(q, self.heads), self._heads(k, self.kv_heads), self._heads(v, self.kv_heads)
        if self.qk_norm:
            q, k = self.part("attention.q_norm")(q), self.part("attention.k_norm")(k)
        q, k, v = own.rotate_and_keep(q, k, v, context)
        mixed = own.attention(q, k, v, context.mask)
        mixed = mixed.transpose(1, 2).flatten(2)  # [b, t, heads * head width]
        return project_onto(residual, linear("attention.o"), mixed)

    def feed_forward(
        self,
        h: LayerInput,
        residual: Tensor | None = None,
        linears: Linears | None = None,
        chosen: Tensor | None = None,
    ) -> Tensor:
        """h [..., d], normed or to be normed -> [..., d], added to the residual if there is one.

        chosen: int64 [tokens, top_k], the experts where they are decided already.
        """
        linear = linears or self.part
        if self.mixture is None:
            return self._mlp("mlp", h, linear, residual)
        x = self.operations.value_of(h)
        rows = x.reshape(-1, x.shape[-1])
        y = self.mixed(rows, self.routing(self.logits(rows, linear), chosen), linear).view(x.shape)
        if self.mixture.shared:
            y = self._mlp("mlp.shared", x, linear, y)
        return plus(residual, y)

    def logits(self, x: Tensor, linears: Linears | None = None) -> Tensor:
        """The router's, float32 or float64 [n, count], for x [n, d], normed."""
        return cast(Tensor, (linears or self.part)(ROUTER)(wide(x)))

    def routing(self, logits: Tensor, chosen: Tensor | None = None) -> Routing:
        """What the router makes of its logits. chosen: as `feed_forward`."""
        assert self.mixture is not None
        return route(logits, self.mixture, cast("Tensor | None", self.part(ROUTER).expert_bias), chosen)

    def mixed(self, x: Tensor, routing: Routing, linears: Linears | None = None) -> Tensor:
        """sum_e w_e mlp_e(x) of x [n, d], normed -> [n, d]; the sum in float32, in the order of the routing.

        Expert by expert, each on its tokens alone, where there are no `experts`.
        """
        assert self.mixture is not None
        if self.experts is not None and linears is None:
            return cast(Tensor, self.experts(x, routing.experts, routing.weights))
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
        """silu(gate) up of an MLP ("mlp", "mlp.experts[3]"), or what it is computed of."""
        linear = linears or self.part
        return gated(linear(f"{name}.gate"), linear(f"{name}.up"), x, self.operations.value_of)

    def _mlp(self, name: str, x: LayerInput, linear: Linears, residual: Tensor | None = None) -> Tensor:
        return project_onto(residual, linear(f"{name}.down"), self.hidden(name, x, linear), self.operations.value_of)

    def _normed(self, part: str, x: Tensor) -> Normed:
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
        return cast(Tensor, self.embedding(input_ids))

    def finish(self, x: Tensor) -> Tensor:
        """x [..., d] after the last block -> logits [..., vocab]."""
        norm, head = cast(RMSNorm, self.final_norm), self.head
        x = self.operations.value_of(Normed(x, norm.weight, norm.eps))
        if head is None:
            return functional.linear(x, cast(Tensor, self.embedding.weight))
        return cast(Tensor, head(x))

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
        if self.shape.block is not None:
            block = counted // self.shape.block
            seen = _before(block, block, own=True)[:, :, tokens]
            mask = seen if mask is None else seen & mask
        places = counted if positions is None else positions.to(device)
        return AttentionContext(*self._rotary(places[:, tokens]), mask, tokens)

    def rotary_table(self, length: int) -> tuple[Tensor, Tensor]:
        """cos and sin of the positions 0 .. length - 1, float32 [length, head width]."""
        cos, sin = self._rotary(torch.arange(length, device=self.device).unsqueeze(0))
        return cos[0, 0], sin[0, 0]

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
        same, before = block[:, None, :, None] == block[:, None, None, :], _before(block, block, own=False)
        seen = torch.cat((torch.cat((same, before), -1), torch.cat((torch.zeros_like(same), same | before), -1)), -2)
        mask = seen & torch.cat((real, real), 1)[:, None, None, :]
        return AttentionContext(*self._rotary(torch.cat((counted, counted), 1)), mask, ALL)

    def window(self, batch: int, length: int) -> Window:
        """All tokens of a canvas [b, t], with room to keep their keys and values."""
        shape = (batch, self.shape.kv_heads, length, self.shape.head_width)
        of = cast(Tensor, self.embedding.weight)
        room = tuple(KeyValues(of.new_empty(shape), of.new_empty(shape)) for _ in self.blocks)
        return Window(ALL, room)

    def hidden(self, input_ids: Tensor, attention_mask: Tensor | None = None, window: Window | None = None) -> Tensor:
        """ids [b, t] -> x [b, t, d] after the last block; `finish` turns any slice of it into logits.

        With a window x [b, n, d] of its tokens alone, and their keys and values are kept there. The other tokens
        are as the passes before left them, so the first pass of a canvas is one over all of it.
        """
        tokens, kept = (ALL, None) if window is None else (window.tokens, window.kept)
        return self.through(input_ids[:, tokens], self.context(input_ids, attention_mask, tokens), kept)

    def through(self, input_ids: Tensor, context: AttentionContext, kept: Sequence[KeyValues] | None = None) -> Tensor:
        """ids [b, n] of the context's tokens -> x [b, n, d] after the last block; nothing waits for the device."""
        blocks = self.blocks

        def call() -> Tensor:
            x = self.embed(input_ids)
            for index, block in enumerate(blocks):
                x = block(x, context if kept is None else replace(context, kept=kept[index]))
            return x

        return self.operations.passed(call)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> DecoderOutput:
        return DecoderOutput(self.finish(self.hidden(input_ids, attention_mask)))

    def _rotary(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin of position * theta^(-2i / width), i < width / 2, for positions [b, t] and the width of what is
        rotated of a head."""
        width = self.shape.rotary_width
        half = torch.arange(0, width, 2, device=positions.device, dtype=torch.float32)
        frequencies = 1.0 / (self.shape.rope_theta ** (half / width))
        angles = positions.unsqueeze(-1).float() * frequencies  # [b, t, width / 2]
        angles = torch.cat((angles, angles), dim=-1).unsqueeze(1)  # both halves turn alike
        return angles.cos(), angles.sin()


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """softmax(q k^T / sqrt(width)) v, [b, heads, n, width], for q alike and k, v [b, kv heads, t, width].

    mask: bool [b, 1, 1, t], True where a key is real; None, all are.
    """
    return functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=q.shape[1] != k.shape[1])


def rotate(x: Tensor, context: AttentionContext) -> Tensor:
    """Rotary positions of x [b, heads, t, head width]: x cos + (-x2, x1) sin with x = (x1, x2), or with the first
    channels of a head for x, where these alone are rotated."""
    width = context.cos.shape[-1]
    part, rest = x[..., :width], x[..., width:]
    whole = wide(part)
    first, second = whole.chunk(2, dim=-1)
    turned = (whole * context.cos + torch.cat((-second, first), dim=-1) * context.sin).to(x.dtype)
    return turned if width == x.shape[-1] else torch.cat((turned, rest), dim=-1)


def rotate_and_keep(q: Tensor, k: Tensor, v: Tensor, context: AttentionContext) -> tuple[Tensor, Tensor, Tensor]:
    """What attention reads of the n tokens that are computed, [b, heads, n, width]: their queries and keys in rotary
    positions; of keys and values those of all t tokens."""
    return rotate(q, context), *context.attended(rotate(k, context), v)


ValueOf = Callable[[LayerInput], Tensor]


def passed(call: Callable[[], Tensor]) -> Tensor:
    """A pass through all blocks, made by the call."""
    return call()


class Operations(NamedTuple):
    """What a model computes besides its linears, as functions that compute what those of `TORCH` do.

    passed: makes a pass through all blocks, with a call that may be made twice.
    """

    attention: Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
    rotate_and_keep: Callable[[Tensor, Tensor, Tensor, AttentionContext], tuple[Tensor, Tensor, Tensor]]
    value_of: ValueOf
    passed: Callable[[Callable[[], Tensor]], Tensor]
    likeliest: Callable[[Tensor, Tensor | None, Tensor, Measure], tuple[Tensor, Tensor]]


TORCH = Operations(attention, rotate_and_keep, value_of, passed, likeliest)


class QuantizedLinear(Protocol):
    """A linear that transforms and quantizes its input (`prepare`) before it multiplies."""

    @property
    def input_key(self) -> object:
        """Equal for linears that prepare an input identically: one activation quantization kernel, one transform."""
        ...

    def prepare(self, given: LayerInput) -> object: ...

    def multiply(self, prepared: object, residual: Tensor | None = None) -> Tensor: ...


def project(linears: Sequence[nn.Module], given: LayerInput, value_of: ValueOf = value_of) -> list[Tensor]:
    """Each linear's output for one shared input; quantized linears that prepare it alike prepare it once.

    value_of: computes what plain linears read.
    """
    outputs: list[Tensor] = []
    prepared: list[tuple[QuantizedLinear, object]] = []
    value: Tensor | None = None
    for linear in linears:
        if not hasattr(linear, "prepare"):
            value = value_of(given) if value is None else value
            outputs.append(linear(value))
            continue
        quantized = cast(QuantizedLinear, linear)
        ready = next((value for other, value in prepared if other.input_key == quantized.input_key), None)
        if ready is None:
            ready = quantized.prepare(given)
            prepared.append((quantized, ready))
        outputs.append(quantized.multiply(ready))
    return outputs


class GatedGemm(Protocol):
    """Gate or up of a block, which one GEMM computes together."""

    def gated(self, given: LayerInput) -> Tensor:
        """silu(gate) up."""
        ...


def gated(gate: nn.Module, up: nn.Module, given: LayerInput, value_of: ValueOf = value_of) -> LayerInput:
    """silu(gate) up for one shared input: where one GEMM gives it that, else for the reader to compute."""
    if hasattr(gate, "gated"):
        return cast(GatedGemm, gate).gated(given)
    return Gated(*project([gate, up], given, value_of))


def project_onto(residual: Tensor | None, linear: nn.Module, given: LayerInput, value_of: ValueOf = value_of) -> Tensor:
    """residual + the linear's output, or that alone; a quantized linear adds where it multiplies."""
    if not hasattr(linear, "prepare"):
        return plus(residual, linear(value_of(given)))
    quantized = cast(QuantizedLinear, linear)
    return quantized.multiply(quantized.prepare(given), residual)


def weight_and_bias(module: nn.Module) -> tuple[Tensor, Tensor | None]:
    """Of a norm or linear, detached; bias None where it has none."""
    weight, bias = cast(Tensor, module.weight), cast("Tensor | None", getattr(module, "bias", None))
    return weight.detach(), None if bias is None else bias.detach()


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
