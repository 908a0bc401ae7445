"""One block of our decoder (`qspec.models.decoder`), its linears and norms reached by their roles.

For x [b, t, d]:

    h = RMSNorm(x)    q, k, v = h Wq^T, h Wk^T, h Wv^T
    x <- x + softmax(rope(q) rope(k)^T / sqrt(head width)) v Wo^T
    h = RMSNorm(x)    x <- x + mlp(h),  mlp(h) = (silu(h Wg^T) * (h Wu^T)) Wd^T

A mixture of experts has sum_e w_e mlp_e(h) over the experts that a router chooses (`qspec.models.routing`), plus that
of a shared one, in the place of mlp(h).
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from qspec.models.family import (
    ROUTER,
    ROUTER_BIAS,
    ROUTER_SCALE,
    SCALAR,
    DecoderShape,
    Experts,
    Family,
)
from qspec.models.inputs import LayerInput, Normed, plus, wide
from qspec.models.operations import (
    TORCH,
    AttentionContext,
    gated,
    project,
    project_onto,
)
from qspec.models.routing import Pools, Routing, by_expert, route

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
            attach(self, self.paths[entry.role.local], linear)
        for role in family.norms_of(index):
            norm = RMSNorm(family.norm_width(role, shape), shape.norm_eps, device, dtype)
            attach(self, self.paths[role.local], norm)

    def part(self, name: str) -> nn.Module:
        return self.get_submodule(self.paths[name])

    def _chosen(self, linears: Linears | None) -> Linears:
        """Never by its truth: torch.compile of torch 2.11 knows none of a method."""
        return self.part if linears is None else linears

    def replace(self, name: str, module: nn.Module) -> None:
        """Puts another module in a part's place, under the same checkpoint name. A router's vectors stay where they
        are."""
        if name == ROUTER:
            for vector in (ROUTER_BIAS, ROUTER_SCALE):
                if not hasattr(module, vector):
                    module.register_buffer(vector, getattr(self.part(name), vector, None))
        attach(self, self.paths[name], module)

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
        linear, own, context = self._chosen(linears), self.operations, context.of(self.kind)
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
        linear = self._chosen(linears)
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
        return cast(Tensor, self.part("mlp.dense_post_norm")(self._mlp("mlp", h, self._chosen(linears))))

    def behind_experts(self, y: Tensor) -> Tensor:
        """What experts that stand beside an MLP have computed, behind their norm."""
        return cast(Tensor, self.part("mlp.experts_post_norm")(y))

    def logits(self, x: Tensor, linears: Linears | None = None) -> Tensor:
        """The router's, float32 or float64 [n, count], for x [n, d], normed."""
        return cast(Tensor, self._chosen(linears)(ROUTER)(wide(x)))

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
        linear, top_k = self._chosen(linears), self.mixture.top_k
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
        linear = self._chosen(linears)
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


def attach(root: nn.Module, path: str, module: nn.Module) -> None:
    """Sets root.path = module, making plain containers on the way."""
    *parents, name = path.split(".")
    for parent in parents:
        child = root._modules.get(parent)
        if child is None:
            child = nn.Module()
            root.add_module(parent, child)
        root = child
    root.add_module(name, module)
