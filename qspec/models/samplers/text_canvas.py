"""What canvases have in common whose finished text is kept as keys and values, and read by passes behind it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from math import prod

import torch
from torch import Tensor

from qspec.models.decoder import Decoder
from qspec.models.operations import AttentionContext, KeyValues


class TextCanvas:
    """ids int64 [b, t]: the text; of each row [b] its number among all of the run (rows), and the place where its
    tokens begin behind padding (begins).

    first: from where a pass computes. seed, number: what random numbers follow from; int64 [] all. finite: bool [],
    False once a logit was NaN or Inf.
    """

    def __init__(self, model: Decoder, batch: int, length: int) -> None:
        self._device = model.device
        self.ids = self._zeros(batch, length)
        self.rows, self.begins = (self._zeros(batch) for _ in range(2))
        self.first, self.seed, self.number = (self._zeros() for _ in range(3))
        self.finite = self._zeros(dtype=torch.bool)
        self._places = self._zeros(length)
        self._angles = model.rotary_tables(length)
        self._whole: Tensor | None = None
        self._kept: tuple[KeyValues, ...] = ()

    def _zeros(self, *sizes: int, dtype: torch.dtype = torch.int64) -> Tensor:
        return torch.zeros(sizes, dtype=dtype, device=self._device)

    @property
    def keeps(self) -> bool:
        """Whether it has room for keys and values."""
        return self._whole is not None

    def room(self, model: Decoder) -> int:
        """Keys and values of all tokens, as a number of values."""
        return sum(map(prod, self._rooms(model)))

    def keep(self, model: Decoder, whole: Tensor) -> None:
        """Takes `room` values [n] of the model's dtype for them."""
        self._whole = whole
        rooms = self._rooms(model)
        parts = zip(torch.split(whole, [prod(room) for room in rooms]), rooms, strict=True)
        self._kept = tuple(KeyValues(*part.view(room)) for part, room in parts)

    def _rooms(self, model: Decoder) -> list[tuple[int, ...]]:
        batch, length = self.ids.shape
        return [(2, batch, block.kv_heads, length, block.head_width) for block in model.blocks]

    def start(self) -> None:
        """Keys and values that no pass has written are read with a weight of 0, which NaN would survive."""
        assert self._whole is not None  # `keep` came before
        self._whole.zero_()
        self.finite.fill_(True)

    def place(self, ids: Tensor, begins: Tensor, rows: Sequence[int], seed: int) -> None:
        """Puts a batch in place: ids int64 [b, n], n <= t."""
        self.seed.fill_(seed)
        self.ids[:, : ids.shape[1]] = ids
        self.begins.copy_(begins)
        self.rows.copy_(torch.tensor(rows))

    def move(self, first: int) -> None:
        """The passes from here on compute from this place on."""
        self.first.fill_(first)
        self._places.copy_(torch.arange(first, first + len(self._places), device=self.ids.device))

    def places(self, count: int) -> Tensor:
        """int64 [count]: from `first` on."""
        return self._places[:count]

    def _until(self, seen: int) -> tuple[KeyValues, ...]:
        """The first `seen` of what is kept, of each block."""
        return tuple(KeyValues(*(part[:, :, :seen] for part in one)) for one in self._kept)

    def _context(self, places: Tensor, masks: Iterable[Tensor]) -> AttentionContext:
        """Of a pass over places int64 [n], which count from where a row begins. masks: of each kind of attention that
        the model has (`DecoderShape.kinds`)."""
        positions = (places - self.begins.unsqueeze(1)).clamp_(min=0)
        first, *others = (
            AttentionContext(cos[positions].unsqueeze(1), sin[positions].unsqueeze(1), mask, places)
            for (cos, sin), mask in zip(self._angles, masks, strict=True)
        )
        return replace(first, others=tuple(others))

    def _real(self, seen: int) -> Tensor:
        """bool [b, seen]: places that are no padding."""
        return torch.arange(seen, device=self.ids.device) >= self.begins.unsqueeze(1)
