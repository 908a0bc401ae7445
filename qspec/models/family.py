"""Families of diffusion LLMs as data: config keys -> shape, roles -> tensor names. No torch.

A family is one small file beside this one. Everything else (our decoder, the checkpoint reader, the plan)
reads the `Family` value, so nothing dispatches on names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal, NamedTuple

Path = tuple[tuple[str, int | None], ...]  # (("blocks", 3), ("mlp", None), ("down", None))
SamplerKind = Literal["llada", "dream", "block"]  # which family's way of denoising; see qspec/models/samplers


@dataclass(frozen=True)
class Role:
    """What a module is for: `blocks[3].attention.q`, `blocks[3].mlp.experts[5].down`, `head`, `embedding`.

    block, expert: indices or None. part: "attention.q", "mlp.down", "mlp.experts.down", "head", "embedding".
    """

    part: str
    block: int | None = None
    expert: int | None = None

    @cached_property
    def path(self) -> Path:
        """`blocks[3].mlp.experts[5].down` as steps with their indices."""
        steps = tuple((name, self.expert if name == "experts" else None) for name in self.part.split("."))
        return steps if self.block is None else (("blocks", self.block), *steps)

    @property
    def name(self) -> str:
        """Its last word: `down`."""
        return self.part.rpartition(".")[2]

    @property
    def local(self) -> str:
        """Its name within the block: `mlp.experts[5].down`; the part, where it is of no expert."""
        return self.part if self.expert is None else self.part.replace("experts", f"experts[{self.expert}]")

    def __str__(self) -> str:
        return self.local if self.block is None else f"blocks[{self.block}].{self.local}"


@dataclass(frozen=True)
class Experts:
    """A mixture of experts in the place of a block's MLP, and how its router chooses `top_k` of `count` for a token
    (`qspec.models.routing`).

    ffn: width of an expert. shared: of the expert that every token passes besides, 0 without one. dense: so many first
    blocks have a plain MLP instead. scoring: of the router's logits, softmax over all experts or a sigmoid each.
    bias: whether a vector is added to the scores for the choice, and for that alone. groups, top_groups: the experts
    chosen come from the `top_groups` of `groups` equal groups whose two best scores have the largest sum. normalized:
    whether the chosen scores are divided by their sum. scale: what they are multiplied by.
    """

    count: int
    top_k: int
    ffn: int
    shared: int = 0
    dense: int = 0
    scoring: Literal["softmax", "sigmoid"] = "softmax"
    bias: bool = False
    groups: int = 1
    top_groups: int = 1
    normalized: bool = False
    scale: float = 1.0


@dataclass(frozen=True)
class DecoderShape:
    """Everything our decoder needs to know, read from a config.json.

    width d, heads, kv_heads, head_width; ffn width; vocab: rows of the embedding (LLaDA's embedding_size can
    exceed its vocab_size). shift: logits at position i predict token i + 1 (Dream).
    sampler: what the family's authors denoise with. other_ends: tokens that end a text as eos_token does.
    block: tokens of a block where attention is block-causal: a token sees its own block and those before; None, every
    token sees every other. qk_norm: queries and keys of a head are normed before their rotary positions.
    """

    layers: int
    width: int
    heads: int
    kv_heads: int
    head_width: int
    ffn: int
    vocab: int
    max_length: int
    norm_eps: float
    rope_theta: float
    qkv_bias: bool
    bias: bool
    tied: bool
    shift: bool
    sampler: SamplerKind
    mask_token: int
    eos_token: int
    pad_token: int
    other_ends: tuple[int, ...] = ()
    block: int | None = None
    qk_norm: bool = False
    rotary: float = 1.0
    experts: Experts | None = None

    @property
    def rotary_width(self) -> int:
        """Channels of a head that have rotary positions."""
        return int(self.head_width * self.rotary)

    @property
    def active_ffn(self) -> int:
        """Hidden channels of the MLP that a token passes, all its experts together, in the block that has most."""
        mixed = 0 if self.experts is None else self.experts.top_k * self.experts.ffn + self.experts.shared
        return max(mixed, self.ffn if self.experts is None or self.experts.dense else 0)

    def mixture(self, block: int) -> Experts | None:
        """The experts of a block; None where it has a plain MLP."""
        return self.experts if self.experts is not None and block >= self.experts.dense else None

    @property
    def norm_gains(self) -> int:
        """Weights of all norms."""
        return (2 * self.layers + 1) * self.width + 2 * self.layers * self.head_width * self.qk_norm

    @property
    def router_biases(self) -> int:
        """Weights of the vectors that routers add to their scores."""
        own = self.experts
        return 0 if own is None or not own.bias else (self.layers - own.dense) * own.count

    @property
    def ends(self) -> tuple[int, ...]:
        """All tokens that end a text."""
        return (self.eos_token, *self.other_ends)


SOURCES = {"input": "rmsnorm", "gated": "silu_mul"}  # of a block's inputs, by their last word
ROUTER = "mlp.router"  # the part
ROUTER_BIAS = "expert_bias"  # the vector beside its weight


@dataclass(frozen=True)
class ModuleEntry:
    """One quantizable module: a linear W [out, in], the embedding [vocab, width] or the head [vocab, width].

    module: its name in the checkpoint, without `.weight`. site: the name of the input that it reads; the
    linears of one site (q, k, v; gate, up) see the same activations. Empty for the embedding. tied: the head that this
    embedding is the weight of too, under the name that it has where a checkpoint stores it once more. experts: of an
    expert's, how many there are, of which a token takes `top_k`.
    """

    role: Role
    module: str
    out_features: int
    in_features: int
    bias: bool
    site: str
    tied: ModuleEntry | None = None
    experts: int = 1
    top_k: int = 1

    @property
    def names(self) -> tuple[ModuleEntry, ...]:
        """Everything that a selector can call this tensor: itself, and a tied head."""
        return (self,) if self.tied is None else (self, self.tied)

    @property
    def weights(self) -> int:
        return self.out_features * self.in_features

    @property
    def source(self) -> str:
        """Of what a block computes this linear's input: the word for it (`qspec.catalog.SOURCES`)."""
        mixed = self.role.part not in ("mlp.gate", "mlp.up") and self.site.endswith("mlp.input")
        return "plain" if mixed else SOURCES.get(self.site.rpartition(".")[2], "plain")  # the router reads it computed

    @property
    def stage(self) -> str:
        """`blocks[3].mlp.experts.gated`: the site without an expert's number. One online transform serves a stage."""
        expert = self.role.expert
        return self.site if expert is None else self.site.replace(f"experts[{expert}]", "experts")

    @cached_property
    def mlp(self) -> tuple[int | None, str, int | None] | None:
        """Equal for gate, up and down of one MLP; None for other linears."""
        prefix, _, name = self.role.part.rpartition(".")
        return (self.role.block, prefix, self.role.expert) if name in ("gate", "up", "down") else None

    @property
    def only_kept(self) -> bool:
        """Whether it can only be kept: embedding and head, which no kernel computes quantized, and routers, whose
        choices one rounding can turn around."""
        return self.role.block is None or self.role.part == ROUTER


class View(NamedTuple):
    """A checkpoint's tensor, by name, that holds the rows of several of the model's, in this order."""

    name: str
    parts: tuple[str, ...]


@dataclass(frozen=True, eq=False)  # one of each: compared and hashed as itself
class Family:
    """A family: how to recognise its config, read its shape and name its tensors.

    blocks: prefix of the list of blocks. parts: part of a block -> module name below `blocks.N`, of an expert's with
    `*` for its number; linears and norms. globals: embedding, final_norm, head -> module name. experts: as its
    published models have them, for recipes without one. fused: module of a block that a checkpoint stores in the place
    of several parts, whose rows it holds one after the other -> these parts, each a module below it.
    """

    name: str
    recognises: Callable[[Mapping[str, Any]], bool]
    shape: Callable[[Mapping[str, Any]], DecoderShape]  # raises InputError naming the key
    blocks: str
    parts: Mapping[str, str]
    globals: Mapping[str, str]
    experts: Experts | None = None
    fused: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def module(self, role: Role) -> str:
        """The checkpoint's name for a role, without `.weight`."""
        if role.block is None:
            return self.globals[role.part]
        return f"{self.blocks}.{role.block}.{self._path(role)}"

    def _path(self, role: Role) -> str:
        path = self.parts[role.part]
        return path if role.expert is None else path.replace("*", str(role.expert))

    def paths(self, shape: DecoderShape, block: int) -> dict[str, str]:
        """Every linear and norm of a block by its local name -> its module name below the block."""
        roles = [*self.norms_of(block), *(entry.role for entry in self.linears(shape, block))]
        return {role.local: self._path(role) for role in roles}

    def norms(self, shape: DecoderShape) -> tuple[Role, ...]:
        """Every normalisation, each a vector of `norm_width` weights, in forward order."""
        return (*(role for block in range(shape.layers) for role in self.norms_of(block)), Role("final_norm"))

    def norms_of(self, block: int) -> list[Role]:
        """Those of one block."""
        return [Role(part, block) for part in self.parts if part.endswith("norm")]

    def norm_width(self, role: Role, shape: DecoderShape) -> int:
        """Channels of a norm: of the residual stream, or (`q_norm`, `k_norm`) of a head."""
        return shape.head_width if role.part.endswith("_norm") and role.block is not None else shape.width

    def tensors(self, shape: DecoderShape) -> dict[str, tuple[int, ...]]:
        """The whole checkpoint as it is published: tensor name -> shape."""
        table = self.state(shape)
        for view in self.views(shape):
            rows = [table.pop(part) for part in view.parts]
            table[view.name] = (sum(own[0] for own in rows), *rows[0][1:])
        return table

    def views(self, shape: DecoderShape) -> tuple[View, ...]:
        """The checkpoint's tensors that hold several of the model's."""
        kinds = ("weight", "bias") if shape.qkv_bias else ("weight",)
        return tuple(
            View(
                f"{self.blocks}.{block}.{path}.{kind}",
                tuple(f"{self.module(Role(part, block))}.{kind}" for part in parts),
            )
            for block in range(shape.layers)
            for path, parts in self.fused.items()
            for kind in kinds
        )

    def state(self, shape: DecoderShape) -> dict[str, tuple[int, ...]]:
        """Every tensor of the model: its name in `Decoder.state_dict()` -> shape."""
        table: dict[str, tuple[int, ...]] = {}
        for entry in self.modules(shape):
            table[f"{entry.module}.weight"] = (entry.out_features, entry.in_features)
            if entry.bias:
                table[f"{entry.module}.bias"] = (entry.out_features,)
            if entry.role.part == ROUTER and shape.experts is not None and shape.experts.bias:
                table[f"{entry.module}.{ROUTER_BIAS}"] = (entry.out_features,)
        for role in self.norms(shape):
            table[f"{self.module(role)}.weight"] = (self.norm_width(role, shape),)
        return table

    def modules(self, shape: DecoderShape) -> tuple[ModuleEntry, ...]:
        """Every quantizable module in forward order: embedding, blocks, and the head unless it is the embedding."""
        head = self._entry(Role("head"), shape.vocab, shape.width, False, "head.input")
        embedding = self._entry(Role("embedding"), shape.vocab, shape.width, False, "")
        inner = [entry for block in range(shape.layers) for entry in self.linears(shape, block)]
        return (replace(embedding, tied=head), *inner) if shape.tied else (embedding, *inner, head)

    def linears(self, shape: DecoderShape, block: int, experts: Iterable[int] | None = None) -> tuple[ModuleEntry, ...]:
        """Those of one block in forward order. experts: which ones; None, all."""
        d, kv, q = shape.width, shape.kv_heads * shape.head_width, shape.heads * shape.head_width
        here = f"blocks[{block}]"
        own = (  # part, out, in, bias, site
            ("attention.q", q, d, shape.qkv_bias, "attention.input"),
            ("attention.k", kv, d, shape.qkv_bias, "attention.input"),
            ("attention.v", kv, d, shape.qkv_bias, "attention.input"),
            ("attention.o", d, q, shape.bias, "attention.mixed"),
        )
        entries = [
            self._entry(Role(part, block), rows, columns, bias, f"{here}.{site}")
            for part, rows, columns, bias, site in own
        ]
        mixture = shape.mixture(block)
        if mixture is None:
            return (*entries, *self._mlp(shape, block, "mlp", shape.ffn))
        entries.append(self._entry(Role(ROUTER, block), mixture.count, d, False, f"{here}.mlp.input"))
        for expert in range(mixture.count) if experts is None else experts:
            entries += self._mlp(shape, block, "mlp.experts", mixture.ffn, expert)
        if mixture.shared:
            entries += self._mlp(shape, block, "mlp.shared", mixture.shared)
        return tuple(entries)

    def _mlp(
        self, shape: DecoderShape, block: int, prefix: str, ffn: int, expert: int | None = None
    ) -> list[ModuleEntry]:
        """Gate, up and down. Those of all experts read one input, and each down its own."""
        d, bias, down = shape.width, shape.bias, Role(f"{prefix}.down", block, expert)
        site, gated = f"blocks[{block}].mlp.input", f"{str(down).removesuffix('down')}gated"
        of = None if expert is None else shape.experts
        return [
            self._entry(Role(f"{prefix}.gate", block, expert), ffn, d, bias, site, of),
            self._entry(Role(f"{prefix}.up", block, expert), ffn, d, bias, site, of),
            self._entry(down, d, ffn, bias, gated, of),
        ]

    def outline(self, blocks: Iterable[int], experts: Iterable[int] = (0,)) -> tuple[ModuleEntry, ...]:
        """The modules of these blocks and experts, embedding and head of a model not known yet: all sizes are 0."""
        shape = replace(_SIZELESS, experts=self.experts)
        embedding, head = (self._entry(Role(part), 0, 0, False, "") for part in ("embedding", "head"))
        inner = [entry for block in blocks for entry in self.linears(shape, block, tuple(experts))]
        sizeless = [replace(entry, out_features=0, in_features=0) for entry in inner]
        return (embedding, *sizeless, replace(head, site="head.input"))

    def _entry(
        self, role: Role, rows: int, columns: int, bias: bool, site: str, experts: Experts | None = None
    ) -> ModuleEntry:
        """experts: those that it is of."""
        count, top_k = (1, 1) if experts is None else (experts.count, experts.top_k)
        return ModuleEntry(role, self.module(role), rows, columns, bias, site, None, count, top_k)


_SIZELESS = DecoderShape(
    layers=1, width=0, heads=0, kv_heads=0, head_width=0, ffn=0, vocab=0, max_length=0, norm_eps=0.0,
    rope_theta=0.0, qkv_bias=False, bias=False, tied=False, shift=False,
    sampler="llada", mask_token=0, eos_token=0, pad_token=0,
)  # fmt: skip
