"""Families of diffusion LLMs as data: config keys -> shape, roles -> tensor names. No torch.

A family is one small file beside this one. Everything else (our decoder, the checkpoint reader, the plan)
reads the `Family` value, so nothing dispatches on names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

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

    def __str__(self) -> str:
        part = self.part if self.expert is None else self.part.replace("experts", f"experts[{self.expert}]")
        return part if self.block is None else f"blocks[{self.block}].{part}"


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

    @property
    def norm_gains(self) -> int:
        """Weights of all norms."""
        return (2 * self.layers + 1) * self.width + 2 * self.layers * self.head_width * self.qk_norm

    @property
    def ends(self) -> tuple[int, ...]:
        """All tokens that end a text."""
        return (self.eos_token, *self.other_ends)


SOURCES = {"attention.input": "rmsnorm", "mlp.input": "rmsnorm", "mlp.gated": "silu_mul"}  # of a block's inputs


@dataclass(frozen=True)
class ModuleEntry:
    """One quantizable module: a linear W [out, in], the embedding [vocab, width] or the head [vocab, width].

    module: its name in the checkpoint, without `.weight`. site: the name of the input that it reads; the
    linears of one site (q, k, v; gate, up) see the same activations. Empty for the embedding. tied: the head that this
    embedding is the weight of too, under the name that it has where a checkpoint stores it once more.
    """

    role: Role
    module: str
    out_features: int
    in_features: int
    bias: bool
    site: str
    tied: ModuleEntry | None = None

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
        return SOURCES.get(self.site.partition(".")[2], "plain")


@dataclass(frozen=True, eq=False)  # one of each: compared and hashed as itself
class Family:
    """A family: how to recognise its config, read its shape and name its tensors.

    blocks: prefix of the list of blocks. parts: part of a block -> module name below `blocks.N`; linears and
    norms. globals: embedding, final_norm, head -> module name.
    """

    name: str
    recognises: Callable[[Mapping[str, Any]], bool]
    shape: Callable[[Mapping[str, Any]], DecoderShape]  # raises InputError naming the key
    blocks: str
    parts: Mapping[str, str]
    globals: Mapping[str, str]

    def module(self, role: Role) -> str:
        """The checkpoint's name for a role, without `.weight`."""
        if role.block is None:
            return self.globals[role.part]
        return f"{self.blocks}.{role.block}.{self.parts[role.part]}"

    def norms(self, shape: DecoderShape) -> tuple[Role, ...]:
        """Every normalisation, each a vector of `norm_width` weights, in forward order."""
        parts = [part for part in self.parts if part.endswith("norm")]
        in_blocks = [Role(part, block) for block in range(shape.layers) for part in parts]
        return (*in_blocks, Role("final_norm"))

    def norm_width(self, role: Role, shape: DecoderShape) -> int:
        """Channels of a norm: of the residual stream, or (`q_norm`, `k_norm`) of a head."""
        return shape.head_width if role.part.endswith("_norm") and role.block is not None else shape.width

    def tensors(self, shape: DecoderShape) -> dict[str, tuple[int, ...]]:
        """The whole checkpoint: tensor name -> shape."""
        table: dict[str, tuple[int, ...]] = {}
        for entry in self.modules(shape):
            table[f"{entry.module}.weight"] = (entry.out_features, entry.in_features)
            if entry.bias:
                table[f"{entry.module}.bias"] = (entry.out_features,)
        for role in self.norms(shape):
            table[f"{self.module(role)}.weight"] = (self.norm_width(role, shape),)
        return table

    def modules(self, shape: DecoderShape) -> tuple[ModuleEntry, ...]:
        """Every quantizable module in forward order: embedding, blocks, and the head unless it is the embedding."""
        d, kv, f = shape.width, shape.kv_heads * shape.head_width, shape.ffn
        q = shape.heads * shape.head_width
        linears = (  # part, out, in, bias, site
            ("attention.q", q, d, shape.qkv_bias, "attention.input"),
            ("attention.k", kv, d, shape.qkv_bias, "attention.input"),
            ("attention.v", kv, d, shape.qkv_bias, "attention.input"),
            ("attention.o", d, q, shape.bias, "attention.mixed"),
            ("mlp.gate", f, d, shape.bias, "mlp.input"),
            ("mlp.up", f, d, shape.bias, "mlp.input"),
            ("mlp.down", d, f, shape.bias, "mlp.gated"),
        )
        head = self._entry(Role("head"), shape.vocab, d, False, "head.input")
        entries = [
            replace(self._entry(Role("embedding"), shape.vocab, d, False, ""), tied=head if shape.tied else None)
        ]
        for block in range(shape.layers):
            for part, rows, columns, bias, site in linears:
                entries.append(self._entry(Role(part, block), rows, columns, bias, f"blocks[{block}].{site}"))
        if not shape.tied:
            entries.append(head)
        return tuple(entries)

    def outline(self, blocks: Iterable[int]) -> tuple[ModuleEntry, ...]:
        """The modules of these blocks, embedding and head of a model not known yet: all sizes are 0."""
        embedding, *linears, head = self.modules(_SIZELESS)
        inner = [
            self._entry(Role(e.role.part, b), 0, 0, False, e.site.replace("blocks[0]", f"blocks[{b}]"))
            for b in blocks
            for e in linears
        ]
        return (embedding, *inner, head)

    def _entry(self, role: Role, rows: int, columns: int, bias: bool, site: str) -> ModuleEntry:
        return ModuleEntry(role, self.module(role), rows, columns, bias, site)


_SIZELESS = DecoderShape(
    layers=1, width=0, heads=0, kv_heads=0, head_width=0, ffn=0, vocab=0, max_length=0, norm_eps=0.0,
    rope_theta=0.0, qkv_bias=False, bias=False, tied=False, shift=False,
    sampler="llada", mask_token=0, eos_token=0, pad_token=0,
)  # fmt: skip
