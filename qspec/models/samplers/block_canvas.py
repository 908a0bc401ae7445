"""The canvas of a block-causal model: tensors that stay where they are, as those of `samplers.canvas`.

A pass computes the tokens of one block, or the whole blocks of all prompts; it reads the keys and values that passes
over clean blocks left, and leaves its own. Which block, which rows and how much padding lie before it are numbers on
the device: one captured pass serves every block, and every batch of as many rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from qspec.models.commit import Sure
from qspec.models.decoder import Decoder
from qspec.models.operations import AttentionContext, KeyValues
from qspec.models.samplers.common import without
from qspec.models.samplers.edits import Edits
from qspec.models.samplers.noise import uniform


@dataclass(frozen=True)
class BlockShape:
    """length: tokens that there is room for."""

    batch: int
    length: int

    def canvas(self, model: Decoder) -> BlockCanvas:
        return BlockCanvas(model, self)


class BlockCanvas:
    """ids int64 [b, t], whole blocks; of each row [b] its number among all of the run (rows), and the places where its
    tokens begin behind padding (begins) and the new ones behind the prompt (texts).

    first, stop: from where to where a pass computes. seed, number, count: what random numbers follow from, and tokens
    to commit; int64 [] all. state [b, d]: of the last token that is kept. edits int64 [b], done bool [b]: passes over a
    row's block without masks, and whether it is finished; edited, where tokens delete and insert. ended: bool [b],
    whether a row's text is. finite: bool [], False once a logit was NaN or Inf. barred: bool [vocab], ids that are no
    token, the mask, or edit the text.
    """

    def __init__(self, model: Decoder, shape: BlockShape) -> None:
        def zeros(*sizes: int, dtype: torch.dtype = torch.int64) -> Tensor:
            return torch.zeros(sizes, dtype=dtype, device=model.device)

        assert model.shape.block is not None
        self.shape, self.block = shape, model.shape.block
        self.ids = zeros(shape.batch, shape.length)
        self.rows, self.begins, self.texts, self.edits = (zeros(shape.batch) for _ in range(4))
        self.done, self.ended = (zeros(shape.batch, dtype=torch.bool) for _ in range(2))
        self.finite = zeros(dtype=torch.bool)
        self.seed, self.number, self.count, self.first, self.stop = (zeros() for _ in range(5))
        self._places = zeros(shape.length)
        self.state = next(model.embedding.parameters()).new_zeros(shape.batch, model.shape.width)
        self.edited = Edits(model, shape.batch, self.block) if model.shape.edit_tokens else None
        self.dtype = torch.float32  # of hidden states: a pass notes it
        self.barred = without(model, model.shape.mask_token, *model.shape.edit_tokens)
        self._cos, self._sin = model.rotary_table(shape.length)
        self._whole: Tensor | None = None
        self._kept: tuple[KeyValues, ...] = ()

    @property
    def keeps(self) -> bool:
        """Whether it has room for keys and values."""
        return self._whole is not None

    def room(self, model: Decoder) -> int:
        """Keys and values of all tokens, as a number of values."""
        shape = model.shape
        return self.ids.numel() * 2 * shape.layers * shape.kv_heads * shape.head_width

    def keep(self, model: Decoder, whole: Tensor) -> None:
        """Takes `room` values [n] of the model's dtype for them."""
        shape = model.shape
        self._whole = whole
        parts = whole.view(shape.layers, 2, self.shape.batch, shape.kv_heads, self.shape.length, shape.head_width)
        self._kept = tuple(KeyValues(keys, values) for keys, values in parts)

    def start(self) -> None:
        """Keys and values that no pass has written are read with a weight of 0, which NaN would survive."""
        assert self._whole is not None  # `keep` came before
        self._whole.zero_()
        self.state.zero_()
        self.finite.fill_(True)

    def take(self, other: BlockCanvas, rows: Tensor, stop: int) -> None:
        """Keys, values and states of these rows [b] of another canvas, before `stop`; its memory may be this one's.

        Both have the same length, so that what is written lies before all that is still to be read.
        """
        for mine, theirs in zip(self._kept, other._kept, strict=True):
            for own, whole in zip(mine, theirs, strict=True):
                own[:, :, :stop] = whole[:, :, :stop].index_select(0, rows)
                own[:, :, stop:].zero_()
        self.state.copy_(other.state.index_select(0, rows))
        self.finite.copy_(other.finite)

    def place(self, ids: Tensor, begins: Tensor, texts: Tensor, rows: Sequence[int], seed: int) -> None:
        """Puts a batch in place: ids int64 [b, n], n <= t."""
        self.seed.fill_(seed)
        self.ended.zero_()
        self.ids[:, : ids.shape[1]] = ids
        for own, given in ((self.begins, begins), (self.texts, texts), (self.rows, torch.tensor(rows))):
            own.copy_(given)

    def window(self, first: int, stop: int) -> None:
        """The passes from here on compute these places."""
        self.first.fill_(first)
        self.stop.fill_(stop)
        self._places.copy_(torch.arange(first, first + self.shape.length, device=self.ids.device))

    def places(self, count: int) -> Tensor:
        """int64 [count]: from `first` on."""
        return self._places[:count]

    def own(self) -> Tensor:
        """The ids of the block at `first`, int64 [b, n]."""
        return self.ids.index_select(1, self.places(self.block))

    def commit(self, model: Decoder, tokens: Tensor, confidence: Tensor, sure: Sure) -> tuple[Tensor, Tensor]:
        """Commits of the tokens int64 [b, n] that are offered from `first` on, as `qspec.models.commit` says."""
        places, mask = self.places(tokens.shape[1]), model.shape.mask_token
        return model.operations.commit(self.ids, places, tokens, confidence, self.count, mask, sure)

    def put(self, ids: Tensor) -> None:
        """The ids of the block at `first`, int64 [b, n]."""
        self.ids.index_copy_(1, self.places(self.block), ids)

    def begin_edits(self, mask: int) -> None:
        """The passes from here on edit the block at `first`."""
        assert self.edited is not None
        self.edited.begin(self.own() == mask)

    def begin(self) -> Tensor:
        """bool [b]: whether a row begins with this block, so that no token of its own comes before."""
        return self.begins == self.first

    def prompts(self) -> Tensor:
        """bool [b, n]: places of the block that hold a prompt."""
        return self.places(self.block) < self.texts.unsqueeze(1)

    def uniform(self) -> Tensor:
        """This pass' random numbers for the places of the block [b, n]; a place counts from the prompt's end."""
        places = self.places(self.block) - self.texts.unsqueeze(1)
        return uniform(self.seed, self.number, self.rows, places, "token")

    def states(self, model: Decoder, tokens: int, seen: int, before: int = 0) -> Tensor:
        """x [b, before + tokens, d], of tokens before `first` and from there on, by a pass that keeps their keys and
        values, and reads the first `seen`."""
        places = self.places(before + tokens) - before
        blocks = ((places - places[0]) // self.block).expand(self.shape.batch, -1)
        pools = model.pools(blocks, len(places))
        context = AttentionContext(*self._rotary(places), self._mask(places, seen), places, pools=pools)
        kept = tuple(KeyValues(*(part[:, :, :seen] for part in one)) for one in self._kept)
        states = model.through(self.ids.index_select(1, places), context, kept)
        self.dtype = states.dtype
        return states

    def _rotary(self, places: Tensor) -> tuple[Tensor, Tensor]:
        positions = (places - self.begins.unsqueeze(1)).clamp_(min=0)
        return self._cos[positions].unsqueeze(1), self._sin[positions].unsqueeze(1)

    def _mask(self, places: Tensor, seen: int) -> Tensor:
        """bool [b, 1, g, seen]: of a row's tokens those of a query's own block and before it; of whole blocks a row for
        each. Padding, whose keys nothing reads, sees every place, for a softmax has to see one."""
        keys = torch.arange(seen, device=places.device)
        real = (keys >= self.begins.unsqueeze(1)).unsqueeze(1)
        queries = places if len(places) % self.block else places[:: self.block]
        before = keys // self.block <= (queries // self.block).unsqueeze(1)
        padding = (queries < self.begins.unsqueeze(1)).unsqueeze(2)
        return (real & before | padding).unsqueeze(1)
