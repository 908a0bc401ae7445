"""Outliers that do not change the function, so that a small model rounds as badly as a large one.

Large models have *normal* outliers, large in a channel over all tokens (inputs of q, o, gate), and *massive* ones, few
and huge, at the input of the down-projection (arXiv 2508.14896, section 3). They are put in as twins: two channels of
a linear's input that always hold the same value h, however large, and that the linear reads with opposite columns,

    W x = ... + u h - u h.

One channel times k with its column divided by k would not do in the inputs of o and down: smoothing at any strength p
finds s_j = (k a)^p / (w / k)^(1 - p) = k a^p / w^(1 - p) and takes the factor k out again, all of it. In large models
the columns of outlier channels have ordinary size, smoothing at p = 1/2 leaves the square root of an outlier, and W4A4
fails; twins do that too, as their columns are as large as one likes.

Behind a norm it is the gain that makes the outlier, and a rotation of the residual stream folds it into the weights.
There the columns are divided by it, so that gain times column, which is what the rotation meets, stays ordinary.

Twins need two spare channels in each input, which are made by taking the least useful ones out: two channels of the
residual stream, two value channels of one head and two neurons in each block. Where several query heads share a head of
values (Dream), the input of o holds a pair of twins for each of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from qspec.models.decoder import Decoder
from qspec.models.decoder_block import DecoderBlock
from qspec.models.family import ROUTER
from qspec.models.operations import weight_and_bias

Pair = tuple[int, int]
Seen = dict[str, Tensor]  # what the linears of one block read, float32 [tokens, in], under the name of one of them

NORMS = ("attention.norm", "mlp.norm")


def mlps(block: DecoderBlock) -> list[str]:
    """A block's MLP, or those of all its experts."""
    return [part.removesuffix(".gate") for part in block.paths if part.endswith(".gate")]


def readers(block: DecoderBlock, norm: str) -> list[tuple[str, ...]]:
    """The linears that read a norm, without a router: those that read the same tokens together, site by site."""
    if norm == "attention.norm":
        return [("attention.q", "attention.k", "attention.v")]
    return [(f"{mlp}.gate", f"{mlp}.up") for mlp in mlps(block)]


def sites(block: DecoderBlock) -> list[tuple[str, ...]]:
    """All linears of a block but a router; each site has the name of its first."""
    downs = [(f"{mlp}.down",) for mlp in mlps(block)]
    return [*readers(block, NORMS[0]), ("attention.o",), *readers(block, NORMS[1]), *downs]


@dataclass(frozen=True)
class Sizes:
    """Of the twins: their value over the rms of the input's other channels; their column over the rms of its row.

    normal: inputs of q, k, v and of gate, up; the column counted with the norm's gain. mixed: of o. massive: of down.
    """

    normal: float
    normal_column: float
    mixed: float
    mixed_column: float
    massive: float
    massive_column: float


@dataclass(frozen=True)
class Room:
    """The spare channels: of the residual stream; of the values and of every MLP in each block."""

    residual: Pair
    values: tuple[Pair, ...]
    neurons: tuple[Mapping[str, Pair], ...]


def inputs(model: Decoder, ids: Tensor) -> list[Seen]:
    """What the linears of each block read for ids [windows, tokens]."""
    seen: list[Seen] = [{} for _ in model.blocks]
    hooks = []
    for own, block in zip(seen, model.blocks, strict=True):
        for part, *_ in sites(block):

            def keep(_: nn.Module, args: tuple[Tensor], own: Seen = own, part: str = part) -> None:
                own[part] = args[0].flatten(0, -2).clone()

            hooks.append(block.part(part).register_forward_pre_hook(keep))
    with torch.no_grad():
        model.hidden(ids)
    for hook in hooks:
        hook.remove()
    return seen


def make_room(model: Decoder, ids: Tensor) -> Room:
    """Takes the least useful channels out; this does change the function, slightly.

    The spare residual channels keep one constant for every token, as large as the embedding's rms: no block writes to
    them or reads them, but the norms see them. Every other spare channel is silent.
    """
    seen = inputs(model, ids)
    residual = _least_two(
        sum(_use(block, own, norm) for block, own in zip(model.blocks, seen, strict=True) for norm in NORMS)
    )
    values, neurons = [], []
    for block, own in zip(model.blocks, seen, strict=True):
        values.append(_spare_values(block, own))
        neurons.append({mlp: _least_two(_used(block, own, (f"{mlp}.down",))) for mlp in mlps(block)})
        for pair in _slots(block, values[-1]):
            _weight(block, "attention.o")[:, pair] = 0
        for mlp, pair in neurons[-1].items():
            _weight(block, f"{mlp}.down")[:, pair] = 0
        for norm in NORMS:
            _weight(block, norm)[list(residual)] = 1
        for site in sites(block):
            for part in site:
                if part.endswith((".o", ".down")):
                    _weight(block, part)[residual, :] = 0
                else:
                    _weight(block, part)[:, residual] = 0
        if ROUTER in block.paths:
            _weight(block, ROUTER)[:, residual] = 0
    embedding = model.embedding.weight.data
    embedding[:, residual] = _exact(embedding.square().mean().sqrt())
    model.head.weight.data[:, residual] = 0
    return Room(residual, tuple(values), tuple(neurons))


def inject(model: Decoder, ids: Tensor, room: Room, sizes: Sizes) -> None:
    """Twins in every input of every block. The function stays what it was."""
    seen = inputs(model, ids)
    generator = torch.Generator().manual_seed(0)
    for block, own, values, neurons in zip(model.blocks, seen, room.values, room.neurons, strict=True):
        constant = {norm: _read(block, own, norm)[:, room.residual[0]] for norm in NORMS}
        for norm in NORMS:
            for site, *_ in readers(block, norm):
                own[site][:, room.residual] = 0  # the other twins must not lean on these
            _normal_twins(block, _read(block, own, norm), constant[norm], norm, room.residual, sizes, generator)
        _mixed_twins(block, own, values, sizes, generator)
        for mlp, pair in neurons.items():
            _massive_twins(block, own, mlp, pair, sizes, generator)


def take_out(model: Decoder) -> None:
    """The reverse of `inject`: twins, which opposite columns give away, are read by none and made at random again."""
    generator = torch.Generator().manual_seed(0)
    for block in model.blocks:
        for norm in NORMS:
            for site in readers(block, norm):
                twins = _take_columns(block, *site)
            _weight(block, norm)[twins] = 1
        mixed = _take_columns(block, "attention.o")
        width, group = block.head_width, block.heads // block.kv_heads
        values = (mixed // (width * group) * width + mixed % width).unique()
        written = {"attention.v": values}
        for mlp in mlps(block):
            massive = _take_columns(block, f"{mlp}.down")
            written |= {f"{mlp}.gate": massive, f"{mlp}.up": massive}
        for writer, rows in written.items():
            w = _weight(block, writer)
            w[rows] = torch.randn(len(rows), w.shape[1], generator=generator) * w.shape[1] ** -0.5


def _take_columns(block: DecoderBlock, *site: str) -> Tensor:
    """Silences the columns of a site's linears that have an opposite one, int64 [n]."""
    unit = nn.functional.normalize(_weight(block, site[0]), dim=0)
    twins = (unit.T @ unit < -0.9999).any(0).nonzero().flatten()
    for part in site:
        _weight(block, part)[:, twins] = 0
    return twins


def _normal_twins(
    block: DecoderBlock,
    rest: Tensor,
    constant: Tensor,
    norm: str,
    pair: Pair,
    sizes: Sizes,
    generator: torch.Generator,
) -> None:
    """The norm's gain lifts the constant channels to `sizes.normal` times the rms of the median token."""
    rms = rest.square().mean(-1).sqrt()
    gain = _exact((sizes.normal * rms / constant).median())
    _weight(block, norm)[list(pair)] = gain
    for site in readers(block, norm):
        for reader in site:
            _opposite_columns(_weight(block, reader), pair, sizes.normal_column / float(gain), generator)


def _mixed_twins(block: DecoderBlock, own: Seen, pair: Pair, sizes: Sizes, generator: torch.Generator) -> None:
    """Two value channels of one head that are nearly constant, and remain so under any attention weights.

    Every query head that reads them puts them into the input of o once more.
    """
    rms = own["attention.o"].square().mean().sqrt()
    v = _weight(block, "attention.v")
    v[list(pair)] = _exact(sizes.mixed * rms * constant_direction(own["attention.q"]))
    _, bias = weight_and_bias(block.part("attention.v"))
    if bias is not None:
        bias[list(pair)] = 0
    for slots in _slots(block, pair):
        _opposite_columns(_weight(block, "attention.o"), slots, sizes.mixed_column, generator)


def _massive_twins(
    block: DecoderBlock, own: Seen, mlp: str, pair: Pair, sizes: Sizes, generator: torch.Generator
) -> None:
    """Two neurons with the nearly constant value silu(4) * up."""
    direction = constant_direction(own[f"{mlp}.gate"])
    value = sizes.massive * own[f"{mlp}.down"].square().mean().sqrt()
    _weight(block, f"{mlp}.gate")[list(pair)] = _exact(4 * direction)
    _weight(block, f"{mlp}.up")[list(pair)] = _exact(value / 3.93 * direction)  # silu(4) = 3.93
    _opposite_columns(_weight(block, f"{mlp}.down"), pair, sizes.massive_column, generator)


def constant_direction(x: Tensor) -> Tensor:
    """The r [in] that brings x r closest to 1 over the tokens of x [tokens, in]: least squares, a little damped."""
    gram = x.T @ x / len(x)
    damped = gram + 1e-2 * gram.diagonal().mean() * torch.eye(len(gram))
    direction = torch.linalg.solve(damped, x.mean(0))
    return direction / (x @ direction).mean()


def _opposite_columns(w: Tensor, pair: Pair, size: float, generator: torch.Generator) -> None:
    """Columns +u and -u, |u_i| = size times the rms of row i, with random signs."""
    signs = torch.randint(2, (len(w),), generator=generator) * 2 - 1
    column = _exact(size * signs * w.square().mean(1).sqrt())
    w[:, pair[0]], w[:, pair[1]] = column, -column


def _read(block: DecoderBlock, own: Seen, norm: str) -> Tensor:
    """What the readers of a norm read; a token counts for each of its experts."""
    return torch.cat([own[site] for site, *_ in readers(block, norm)])


def _used(block: DecoderBlock, own: Seen, site: tuple[str, ...]) -> Tensor:
    """How much each channel matters to the linears that read it: sum x^2 |columns|^2."""
    return own[site[0]].square().sum(0) * sum(_weight(block, reader).square().sum(0) for reader in site)


def _use(block: DecoderBlock, own: Seen, norm: str) -> Tensor:
    """The same of a norm's output, as a share."""
    use = sum(_used(block, own, site) for site in readers(block, norm))
    return use / use.sum()


def _spare_values(block: DecoderBlock, own: Seen) -> Pair:
    """The two value channels of one head whose loss costs least, summed over the query heads that read them."""
    use = _used(block, own, ("attention.o",))
    shared = use.view(block.kv_heads, -1, block.head_width).sum(1)  # [kv heads, head width]
    least = shared.topk(2, largest=False)
    head = int(least.values.sum(1).argmin())
    first, second = sorted((least.indices[head] + head * block.head_width).tolist())
    return first, second


def _slots(block: DecoderBlock, values: Pair) -> list[Pair]:
    """Where two channels of v's output stand in o's input: one pair for every query head that reads their head."""
    width, group = block.head_width, block.heads // block.kv_heads
    head = values[0] // width
    first, second = (value - head * width for value in values)
    return [(query * width + first, query * width + second) for query in range(head * group, (head + 1) * group)]


def _least_two(use: Tensor) -> Pair:
    first, second = sorted(use.topk(2, largest=False).indices.tolist())
    return first, second


def _weight(block: DecoderBlock, part: str) -> Tensor:
    weight, _ = weight_and_bias(block.part(part))
    return weight


def _exact(x: Tensor) -> Tensor:
    """x rounded to bfloat16, in float32."""
    return x.to(torch.bfloat16).float()
