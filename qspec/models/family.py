"""Families of diffusion LLMs as data: config keys -> shape, roles -> tensor names. No torch.

A family is one small file beside this one. Everything else (our decoder, the checkpoint reader, the plan)
reads the `Family` value, so nothing dispatches on names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal, NamedTuple

from qspec.catalog import Activation

Path = tuple[tuple[str, int | None], ...]  # (("blocks", 3), ("mlp", None), ("down", None))
NO_MASK = -1
SamplerKind = Literal[
    "llada", "dream", "block", "renoise"
]  # which family's way of denoising; see qspec/models/samplers


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
class Attention:
    """How a block attends.

    heads, kv_heads, head_width: as of a `DecoderShape`. rope_theta: base of its rotary positions. rotary_width: so many
    first channels of a head have rotary positions. turning: how many pairs of these turn, those of the highest
    frequencies; the others have frequency 0. window: a token sees so many up to itself, a canvas one less before it;
    None, all that the model lets it see. values: whether values have a linear of their own; without, they are the keys
    before norm and rotary positions.
    """

    heads: int
    kv_heads: int
    head_width: int
    rope_theta: float
    rotary_width: int
    turning: int
    window: int | None = None
    values: bool = True


@dataclass(frozen=True)
class Experts:
    """A mixture of experts in the place of a block's MLP, and how its router chooses `top_k` of `count` for a token
    (`qspec.models.routing`).

    ffn: width of an expert. shared: of the expert that every token passes besides, 0 without one. dense: so many first
    blocks have a plain MLP instead. scoring: of the router's logits, softmax over all experts or a sigmoid each.
    bias: whether a vector is added to the scores for the choice, and for that alone. groups, top_groups: the experts
    chosen come from the `top_groups` of `groups` equal groups whose two best scores have the largest sum. capacity: so
    many experts serve a block of tokens, those whose largest score for one of them is best; 0, all. normalized:
    whether the chosen scores are divided by their sum. scale: what they are multiplied by. beside: whether they stand
    beside the block's MLP instead, experts, router and MLP each behind a norm of its own.
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
    capacity: int = 0
    normalized: bool = False
    scale: float = 1.0
    beside: bool = False


@dataclass(frozen=True)
class DecoderShape:
    """Everything our decoder needs to know, read from a config.json.

    width d, heads, kv_heads, head_width; ffn width; vocab: rows of the embedding (LLaDA's embedding_size can
    exceed its vocab_size). shift: logits at position i predict token i + 1 (Dream).
    sampler: what the family's authors denoise with. other_ends: tokens that end a text as eos_token does. edit_tokens:
    what a sampler predicts to delete a token, and to insert one before it; no text has them.
    block: tokens of a block where attention is block-causal: a token sees its own block and those before; None, every
    token sees every other. qk_norm: queries and keys of a head are normed before their rotary positions.

    causal: a finished token sees those before it alone, and a canvas of `block` tokens those and itself; its noise is
    ordinary tokens, drawn uniformly (`mask_token` is `NO_MASK`). attentions: of each block, where they differ; heads,
    kv_heads, head_width, rope_theta are the first's. values_normed: as `qk_norm`, without gain. score_scale: what
    products of queries and keys are multiplied by; None, 1 / sqrt(head width). activation: of an MLP's gate.
    embedding_scale: what embedded tokens are multiplied by. softcap: logits are softcap tanh(logits / softcap).
    conditioning: width of the MLP through which a canvas is told the logits of the step before; 0 without one.
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
    edit_tokens: tuple[int, ...] = ()
    block: int | None = None
    qk_norm: bool = False
    rotary: float = 1.0
    experts: Experts | None = None
    causal: bool = False
    attentions: tuple[Attention, ...] = ()
    values_normed: bool = False
    score_scale: float | None = None
    activation: Activation = "silu"
    embedding_scale: float = 1.0
    softcap: float | None = None
    conditioning: int = 0

    @property
    def rotary_width(self) -> int:
        """Channels of a head that have rotary positions."""
        return int(self.head_width * self.rotary)

    def attention(self, block: int) -> Attention:
        """How a block attends."""
        if self.attentions:
            return self.attentions[block]
        width = self.rotary_width
        return Attention(self.heads, self.kv_heads, self.head_width, self.rope_theta, width, width // 2)

    @property
    def key_values(self) -> int:
        """Keys and values that all blocks together keep of a token."""
        return 2 * sum(how.kv_heads * how.head_width for how in map(self.attention, range(self.layers)))

    @property
    def kinds(self) -> tuple[Attention, ...]:
        """The different ways in which blocks attend, in the order of their first block."""
        return tuple(dict.fromkeys(self.attentions)) or (self.attention(0),)

    @property
    def active_ffn(self) -> int:
        """Hidden channels of the MLP that a token passes, all its experts together, in the block that has most."""
        if self.experts is None:
            return self.ffn
        mixed = self.experts.top_k * self.experts.ffn + self.experts.shared
        return self.ffn + mixed if self.experts.beside else max(mixed, self.ffn if self.experts.dense else 0)

    def mixture(self, block: int) -> Experts | None:
        """The experts of a block; None where it has a plain MLP."""
        return self.experts if self.experts is not None and block >= self.experts.dense else None

    @property
    def ends(self) -> tuple[int, ...]:
        """All tokens that end a text."""
        return (self.eos_token, *self.other_ends)


ROUTER = "mlp.router"  # the part
SCALAR = "scalar"  # the part: what a block's output is multiplied by
CONDITIONING = tuple(f"conditioning.{name}" for name in ("gate", "up", "down"))
ROUTER_BIAS, ROUTER_SCALE = "expert_bias", "expert_scale"  # vectors beside its weight


@dataclass(frozen=True)
class ModuleEntry:
    """One quantizable module: a linear W [out, in], the embedding [vocab, width] or the head [vocab, width].

    module: its name in the checkpoint, without `.weight`. site: the name of the input that it reads; the
    linears of one site (q, k, v; gate, up) see the same activations. Empty for the embedding. tied: the head that this
    embedding is the weight of too, under the name that it has where a checkpoint stores it once more. experts: of an
    expert's, how many there are, of which a token takes `top_k`. activation: of the gate of the MLP that it belongs to.
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
    activation: Activation = "silu"

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
        if self.site.endswith(".gated"):
            return f"{self.activation}_mul"
        mixed = ".mlp." in self.site and self.role.part not in ("mlp.gate", "mlp.up")  # router and experts: computed
        return "rmsnorm" if self.site.endswith(".input") and not mixed else "plain"

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
    """A checkpoint's tensor, by name, that holds the rows of several of the model's, in this order, or of one under
    another name. stacked: on so many matrices, one for each expert, with equally many parts each; None, on one."""

    name: str
    parts: tuple[str, ...]
    stacked: int | None = None


@dataclass(frozen=True, eq=False)  # one of each: compared and hashed as itself
class Family:
    """A family: how to recognise its config, read its shape and name its tensors.

    blocks: prefix of the list of blocks. parts: part of a block -> module name below `blocks.N`, of an expert's with
    `*` for its number; linears and norms. globals: embedding, final_norm, head -> module name. experts: as its
    published models have them, for recipes without one. fused: module of a block that a checkpoint stores in the place
    of several parts, whose rows it holds one after the other -> these parts, each a module below it; of experts' parts
    a tensor with a matrix for each expert. renamed: tensor of a block in a checkpoint -> in the model, where these
    differ. copies: tensors that a checkpoint holds once more, `*` for the block's number -> of which of a block's it is
    a copy. aside: how the names of tensors begin that the model, which reads text, does not have. hosted: whether
    transformers loads its artifacts (`qspec.models.hf`).
    """

    name: str
    recognises: Callable[[Mapping[str, Any]], bool]
    shape: Callable[[Mapping[str, Any]], DecoderShape]  # raises InputError naming the key
    blocks: str
    parts: Mapping[str, str]
    globals: Mapping[str, str]
    experts: Experts | None = None
    fused: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    renamed: Mapping[str, str] = field(default_factory=dict)
    copies: Mapping[str, str] = field(default_factory=dict)
    aside: tuple[str, ...] = ()
    hosted: bool = False

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
        inner = (role for block in range(shape.layers) for role in self.norms_of(block))
        conditioning = (Role("conditioning.norm"),) if shape.conditioning else ()
        return (*conditioning, *inner, Role("final_norm"))

    def norms_of(self, block: int) -> list[Role]:
        """Those of one block, and its scalar."""
        return [Role(part, block) for part in self.parts if part.endswith("norm") or part == SCALAR]

    def norm_width(self, role: Role, shape: DecoderShape) -> int:
        """Channels of a norm: of the residual stream, or (`q_norm`, `k_norm`) of a head; 1 of a scalar."""
        if role.part in ("attention.q_norm", "attention.k_norm"):
            assert role.block is not None
            return shape.attention(role.block).head_width
        return 1 if role.part == SCALAR else shape.width

    def vectors(self, shape: DecoderShape) -> int:
        """Weights of all norms and scalars, and of the vectors beside routers."""
        norms = sum(self.norm_width(role, shape) for role in self.norms(shape))
        mixtures = filter(None, map(shape.mixture, range(shape.layers)))
        return norms + sum(how.count * (how.bias + how.beside) for how in mixtures)

    def tensors(self, shape: DecoderShape) -> dict[str, tuple[int, ...]]:
        """The whole checkpoint as it is published: tensor name -> shape."""
        table = self.state(shape)
        for view in self.views(shape):
            rows = [table.pop(part) for part in view.parts]
            height = sum(own[0] for own in rows)
            first = (height,) if view.stacked is None else (view.stacked, height // view.stacked)
            table[view.name] = (*first, *rows[0][1:])
        return table

    def views(self, shape: DecoderShape) -> tuple[View, ...]:
        """The checkpoint's tensors that hold several of the model's, or one under another name."""
        return tuple(
            view
            for block in range(shape.layers)
            for view in (
                *(view for path in self.fused for view in self._fused(shape, block, path)),
                *(
                    View(f"{self.blocks}.{block}.{stored}", (f"{self.blocks}.{block}.{own}",))
                    for stored, own in self.renamed.items()
                ),
            )
        )

    def _fused(self, shape: DecoderShape, block: int, path: str) -> Iterator[View]:
        name, parts = f"{self.blocks}.{block}.{path}", self.fused[path]
        if parts[0].startswith("mlp.experts."):
            assert shape.experts is not None
            roles = (Role(part, block, expert) for expert in range(shape.experts.count) for part in parts)
            yield View(name, tuple(f"{self.module(role)}.weight" for role in roles), shape.experts.count)
            return
        for kind in ("weight", "bias") if shape.qkv_bias else ("weight",):
            yield View(f"{name}.{kind}", tuple(f"{self.module(Role(part, block))}.{kind}" for part in parts))

    def copied(self, shape: DecoderShape) -> dict[str, str]:
        """Tensors that a checkpoint may hold once more: name -> of which of the model's it is a copy."""
        table = {f"{self.globals['head']}.weight": f"{self.globals['embedding']}.weight"} if shape.tied else {}
        for block in range(shape.layers):
            for name, own in self.copies.items():
                table[name.replace("*", str(block))] = f"{self.blocks}.{block}.{own}"
        return table

    def state(self, shape: DecoderShape) -> dict[str, tuple[int, ...]]:
        """Every tensor of the model: its name in `Decoder.state_dict()` -> shape."""
        table: dict[str, tuple[int, ...]] = {}
        for entry in self.modules(shape):
            table[f"{entry.module}.weight"] = (entry.out_features, entry.in_features)
            if entry.bias:
                table[f"{entry.module}.bias"] = (entry.out_features,)
            if entry.role.part == ROUTER and shape.experts is not None and shape.experts.bias:
                table[f"{entry.module}.{ROUTER_BIAS}"] = (entry.out_features,)
            if entry.role.part == ROUTER and shape.experts is not None and shape.experts.beside:
                table[f"{entry.module}.{ROUTER_SCALE}"] = (entry.out_features,)
        for role in self.norms(shape):
            table[f"{self.module(role)}.weight"] = (self.norm_width(role, shape),)
        return table

    def modules(self, shape: DecoderShape) -> tuple[ModuleEntry, ...]:
        """Every quantizable module in forward order: embedding, blocks, and the head unless it is the embedding."""
        head = self._entry(Role("head"), shape.vocab, shape.width, False, "head.input")
        embedding = self._entry(Role("embedding"), shape.vocab, shape.width, False, "")
        inner = [entry for block in range(shape.layers) for entry in self.linears(shape, block)]
        conditioning = self.conditioning(shape) if shape.conditioning else ()
        if shape.tied:
            return (replace(embedding, tied=head), *conditioning, *inner)
        return (embedding, *conditioning, *inner, head)

    def conditioning(self, shape: DecoderShape) -> tuple[ModuleEntry, ...]:
        """The linears outside the blocks through which a canvas is told the logits of the step before."""
        gate, up, down = (Role(part) for part in CONDITIONING)
        d, ffn = shape.width, shape.conditioning
        read = [self._entry(role, ffn, d, False, "conditioning.input") for role in (gate, up)]
        return (*read, self._entry(down, d, ffn, False, "conditioning.gated"))

    def linears(self, shape: DecoderShape, block: int, experts: Iterable[int] | None = None) -> tuple[ModuleEntry, ...]:
        """Those of one block in forward order. experts: which ones; None, all."""
        how, d, here = shape.attention(block), shape.width, f"blocks[{block}]"
        kv, q = how.kv_heads * how.head_width, how.heads * how.head_width
        values = (("attention.v", kv, d, shape.qkv_bias, "attention.input"),) if how.values else ()
        own = (  # part, out, in, bias, site
            ("attention.q", q, d, shape.qkv_bias, "attention.input"),
            ("attention.k", kv, d, shape.qkv_bias, "attention.input"),
            *values,
            ("attention.o", d, q, shape.bias, "attention.mixed"),
        )
        entries = [
            self._entry(Role(part, block), rows, columns, bias, f"{here}.{site}")
            for part, rows, columns, bias, site in own
        ]
        mixture = shape.mixture(block)
        if mixture is None or mixture.beside:
            entries += self._mlp(shape, block, "mlp", shape.ffn)
        if mixture is None:
            return tuple(entries)
        router = f"{here}.mlp.router.input" if mixture.beside else f"{here}.mlp.input"
        entries.append(self._entry(Role(ROUTER, block), mixture.count, d, False, router))
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
        gated, of = f"{str(down).removesuffix('down')}gated", None if expert is None else shape.experts
        site = f"blocks[{block}].mlp.experts.input" if of and of.beside else f"blocks[{block}].mlp.input"
        own = [
            self._entry(Role(f"{prefix}.gate", block, expert), ffn, d, bias, site, of),
            self._entry(Role(f"{prefix}.up", block, expert), ffn, d, bias, site, of),
            self._entry(down, d, ffn, bias, gated, of),
        ]
        return own if shape.activation == "silu" else [replace(entry, activation=shape.activation) for entry in own]

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
