"""The canvas of a block-causal model: tensors that stay where they are, as those of `samplers.canvas`.

A pass computes the tokens of one block, or the whole blocks of all prompts; it reads the keys and values that passes
over clean blocks left, and leaves its own. Which block, which rows and how much padding lie before it are numbers on
the device: one captured pass serves every block, and every batch of as many rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from qspec.models.commit import Sure
from qspec.models.decoder import Decoder
from qspec.models.samplers.common import without
from qspec.models.samplers.edits import Edits
from qspec.models.samplers.noise import uniform
from qspec.models.samplers.text_canvas import TextCanvas


@dataclass(frozen=True)
class BlockShape:
    """length: tokens that there is room for."""

    batch: int
    length: int

    def canvas(self, model: Decoder) -> BlockCanvas:
        return BlockCanvas(model, self)


class BlockCanvas(TextCanvas):
    """ids are whole blocks; texts int64 [b]: the places where a row's new tokens begin behind the prompt.

    stop: to where a pass computes; count: tokens to commit; int64 [] both. state [b, d]: of the last token that is
    kept. edits int64 [b], done bool [b]: passes over a row's block without masks, and whether it is finished; edited,
    where tokens delete and insert. ended: bool [b], whether a row's text is. barred: bool [vocab], ids that are no
    token, the mask, or edit the text.
    """

    def __init__(self, model: Decoder, shape: BlockShape) -> None:
        super().__init__(model, shape.batch, shape.length)
        assert model.shape.block is not None
        self.shape, self.block = shape, model.shape.block
        self.texts, self.edits = (self._zeros(shape.batch) for _ in range(2))
        self.done, self.ended = (self._zeros(shape.batch, dtype=torch.bool) for _ in range(2))
        self.count, self.stop = (self._zeros() for _ in range(2))
        self.state = next(model.embedding.parameters()).new_zeros(shape.batch, model.shape.width)
        self.edited = Edits(model, shape.batch, self.block) if model.shape.edit_tokens else None
        self.dtype = torch.float32  # of hidden states: a pass notes it
        self.barred = without(model, model.shape.mask_token, *model.shape.edit_tokens)

    def start(self) -> None:
        super().start()
        self.state.zero_()

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

    def place(self, ids: Tensor, begins: Tensor, rows: Sequence[int], seed: int) -> None:
        super().place(ids, begins, rows, seed)
        self.ended.zero_()

    def window(self, first: int, stop: int) -> None:
        """The passes from here on compute these places."""
        self.move(first)
        self.stop.fill_(stop)

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
        context = replace(self._context(places, [self._mask(places, seen)]), pools=model.pools(blocks, len(places)))
        states = model.through(self.ids.index_select(1, places), context, self._until(seen))
        self.dtype = states.dtype
        return states

    def _mask(self, places: Tensor, seen: int) -> Tensor:
        """bool [b, 1, g, seen]: of a row's tokens those of a query's own block and before it; of whole blocks a row for
        each. Padding, whose keys nothing reads, sees every place, for a softmax has to see one."""
        keys = torch.arange(seen, device=places.device)
        real = self._real(seen).unsqueeze(1)
        queries = places if len(places) % self.block else places[:: self.block]
        before = keys // self.block <= (queries // self.block).unsqueeze(1)
        padding = (queries < self.begins.unsqueeze(1)).unsqueeze(2)
        return (real & before | padding).unsqueeze(1)
