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

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from qspec.models.decoder import Decoder, DecoderBlock, weight_and_bias

Pair = tuple[int, int]
Seen = dict[str, Tensor]  # what the linears of one block read, float32 [tokens, in], under the name of one of them

NORMS = {  # norm -> the linears that read it; the first names the site
    "attention.norm": ("attention.q", "attention.k", "attention.v"),
    "mlp.norm": ("mlp.gate", "mlp.up"),
}
SITES = ("attention.q", "attention.o", "mlp.gate", "mlp.down")


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
    """The spare channels: of the residual stream; of the values and of the FFN in each block."""

    residual: Pair
    values: tuple[Pair, ...]
    neurons: tuple[Pair, ...]


def inputs(model: Decoder, ids: Tensor) -> list[Seen]:
    """What the linears of each block read for ids [windows, tokens]."""
    seen: list[Seen] = [{} for _ in model.blocks]
    hooks = []
    for own, block in zip(seen, model.blocks, strict=True):
        for part in SITES:

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
        values.append(_spare_values(block, own["attention.o"]))
        neurons.append(_least_two(own["mlp.down"].square().mean(0) * _weight(block, "mlp.down").square().sum(0)))
        for pair in _slots(block, values[-1]):
            _weight(block, "attention.o")[:, pair] = 0
        _weight(block, "mlp.down")[:, neurons[-1]] = 0
        for norm, readers in NORMS.items():
            _weight(block, norm)[list(residual)] = 1
            for reader in readers:
                _weight(block, reader)[:, residual] = 0
        for writer in ("attention.o", "mlp.down"):
            _weight(block, writer)[residual, :] = 0
    embedding = model.embedding.weight.data
    embedding[:, residual] = _exact(embedding.square().mean().sqrt())
    model.head.weight.data[:, residual] = 0
    return Room(residual, tuple(values), tuple(neurons))


def inject(model: Decoder, ids: Tensor, room: Room, sizes: Sizes) -> None:
    """Twins in every input of every block. The function stays what it was."""
    seen = inputs(model, ids)
    generator = torch.Generator().manual_seed(0)
    for block, own, values, neurons in zip(model.blocks, seen, room.values, room.neurons, strict=True):
        for norm, readers in NORMS.items():
            constant = own[readers[0]][:, room.residual[0]].clone()
            own[readers[0]][:, room.residual] = 0  # the other twins must not lean on these
            _normal_twins(block, own[readers[0]], constant, norm, room.residual, sizes, generator)
        _mixed_twins(block, own, values, sizes, generator)
        _massive_twins(block, own, neurons, room.residual, sizes, generator)


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
    for reader in NORMS[norm]:
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
    block: DecoderBlock, own: Seen, pair: Pair, residual: Pair, sizes: Sizes, generator: torch.Generator
) -> None:
    """Two neurons with the nearly constant value silu(4) * up."""
    h = own["mlp.gate"].clone()
    h[:, list(residual)] = 0  # they must not lean on the other twins
    direction = constant_direction(h)
    value = sizes.massive * own["mlp.down"].square().mean().sqrt()
    _weight(block, "mlp.gate")[list(pair)] = _exact(4 * direction)
    _weight(block, "mlp.up")[list(pair)] = _exact(value / 3.93 * direction)  # silu(4) = 3.93
    _opposite_columns(_weight(block, "mlp.down"), pair, sizes.massive_column, generator)


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


def _use(block: DecoderBlock, own: Seen, norm: str) -> Tensor:
    """How much each channel of a norm's output matters to its readers: mean x^2 |columns|^2, as a share."""
    readers = NORMS[norm]
    columns = sum(_weight(block, reader).square().sum(0) for reader in readers)
    use = own[readers[0]].square().mean(0) * columns
    return use / use.sum()


def _spare_values(block: DecoderBlock, mixed: Tensor) -> Pair:
    """The two value channels of one head whose loss costs least, summed over the query heads that read them."""
    use = mixed.square().mean(0) * _weight(block, "attention.o").square().sum(0)
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
