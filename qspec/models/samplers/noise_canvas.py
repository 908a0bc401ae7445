"""Canvases of noise behind a text: tensors that stay where they are, as those of `samplers.canvas`.

A pass computes the tokens of one canvas, which see all of it and the text before it, or reads the tokens of a finished
text causally; each leaves its keys and values. Where the canvas begins, and how much padding lies before a row, are
numbers on the device: one captured pass serves every canvas, and every batch of as many rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from qspec.models.decoder import Decoder, near
from qspec.models.samplers.noise import Purpose, uniform
from qspec.models.samplers.text_canvas import TextCanvas


@dataclass(frozen=True)
class NoiseShape:
    """length: tokens that there is room for. drafts: how many passes before are remembered."""

    batch: int
    length: int
    drafts: int

    def canvas(self, model: Decoder) -> NoiseCanvas:
        return NoiseCanvas(model, self)


class NoiseCanvas(TextCanvas):
    """tokens int64 [b, c]: the canvas at `first`. draft, confidence [b, c]: the last pass' likeliest tokens and their
    probabilities; drafts int64 [k, b, c]: those of k passes before.

    condition [b, c, d]: what the last pass tells the next one; 0, nothing. settled bool [b]: rows that stay as they
    are. temperature: float32 []. text: int64 [], where the texts begin behind the prompts.
    """

    def __init__(self, model: Decoder, shape: NoiseShape) -> None:
        super().__init__(model, shape.batch, shape.length)
        assert model.shape.block is not None
        self.shape, self.size, self._vocab = shape, model.shape.block, model.shape.vocab
        self._windows = [how.window for how in model.shape.kinds]
        self.tokens, self.draft = (self._zeros(shape.batch, self.size) for _ in range(2))
        self.drafts = self._zeros(shape.drafts, shape.batch, self.size)
        self.confidence = self._zeros(shape.batch, self.size, dtype=torch.float32)
        self.condition = next(model.embedding.parameters()).new_zeros(shape.batch, self.size, model.shape.width)
        self.settled = self._zeros(shape.batch, dtype=torch.bool)
        self.temperature, self.text = self._zeros(dtype=torch.float32), self._zeros()
        self.dtype = torch.float32  # of hidden states: a pass notes it

    def begin(self, first: int) -> None:
        """A canvas of noise at this place; the passes from here on denoise it."""
        self.move(first)
        self.number.zero_()
        self.tokens.copy_(self.noise())
        self.draft.copy_(self.tokens)
        self.drafts.fill_(-1)
        for own in (self.confidence, self.condition, self.settled):
            own.zero_()

    def noise(self) -> Tensor:
        """This pass' tokens drawn from U(vocabulary), int64 [b, c]."""
        return (self.uniform("place") * self._vocab).long()

    def uniform(self, purpose: Purpose) -> Tensor:
        """Its random numbers [b, c]; a place counts from the prompt's end."""
        places = (self.places(self.size) - self.text).expand(self.tokens.shape)
        return uniform(self.seed, self.number, self.rows, places, purpose)

    def read(self, model: Decoder, tokens: int, seen: int) -> Tensor:
        """x [b, tokens, d] of the text from `first` on, by a causal pass, as `states`."""
        places = self.places(tokens)
        keys, queries = torch.arange(seen, device=places.device), places.unsqueeze(1)
        real = (keys <= queries) & self._real(seen).unsqueeze(1)
        # Padding, whose keys nothing reads, sees every place, for a softmax has to see one.
        padding = (places < self.begins.unsqueeze(1)).unsqueeze(2)
        masks = [(real & near(queries, keys, window) | padding).unsqueeze(1) for window in self._windows]
        return model.through(self.ids.index_select(1, places), self._context(places, masks), self._until(seen))

    def states(self, model: Decoder, seen: int) -> Tensor:
        """x [b, c, d] of the canvas, by a pass that keeps its keys and values, and reads the first `seen`.

        Where attention has a window, every token sees window - 1 tokens of the text, from wherever it stands.
        """
        places, keys = self.places(self.size), torch.arange(seen, device=self.ids.device)
        real = self._real(seen) & (keys < self.first + self.size)
        masks = [(real & near(self.first, keys, window))[:, None, None, :] for window in self._windows]
        states = model.canvas_through(self.tokens, self._context(places, masks), self._until(seen), self.condition)
        self.dtype = states.dtype
        return states

    def settle(self, draft: Tensor, confidence: Tensor, condition: Tensor, tokens: Tensor, sure: Tensor) -> None:
        """What a pass has found, [b, c] and [b, c, d], of the rows that are not settled; sure: bool [b], those that are
        now, once the drafts before were the same."""
        stay = self.settled.unsqueeze(1)
        for own, found in ((self.draft, draft), (self.confidence, confidence), (self.tokens, tokens)):
            own.copy_(torch.where(stay, own, found))
        self.condition.copy_(torch.where(stay.unsqueeze(2), self.condition, condition))
        same = (self.drafts == self.draft).all(-1).all(0)
        self.drafts.copy_(torch.cat((self.drafts, self.draft.unsqueeze(0)))[1:])
        self.settled |= same & sure
