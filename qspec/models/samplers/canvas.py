"""The canvas as a sampler's steps see it: tensors that stay where they are, so that a step can be captured once.

A step reads everything that differs from one step to the next, and from one prompt to the next, from these tensors:
the ids, the padding, which places are the block's, how many tokens to commit, the numbers that its noise follows from.
What else it depends on (sizes, settings) is said in its key (`models.engine`).

A canvas [b, t] is as long as others that it shares its steps with: the tokens of a row are followed by padding, which
no token sees.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from qspec.errors import NumericsError
from qspec.models.commit import Sure
from qspec.models.decoder import Decoder
from qspec.models.operations import AttentionContext, KeyValues
from qspec.models.samplers.common import Denoiser, not_finite, operations_of
from qspec.models.samplers.noise import Purpose, uniform
from qspec.models.shift import sources


@dataclass(frozen=True)
class Pass:
    """What a step computes. kept: keys and values of its tokens, to be read by later passes over a window.

    tokens: of the window, which begins where `Canvas.window` said; None, all.
    """

    kept: bool = False
    tokens: int | None = None


WHOLE = Pass()


@dataclass(frozen=True)
class CanvasShape:
    """length: with padding behind the text. padded: whether any token is padding. guided: two passes in one."""

    batch: int
    length: int
    padded: bool
    guided: bool

    @property
    def computed(self) -> int:
        """Rows of a pass."""
        return self.batch * (1 + self.guided)

    def canvas(self, model: Denoiser) -> Canvas:
        return Canvas(model, self)


class Canvas:
    """ids int64 [b, t] and what is said about them. Guidance computes 2 b rows, the latter with their prompts masked.

    rows int64 [b]: the number of each among all rows of the run. seed, step, count (of tokens to commit): int64 [].
    share: float32 [], of masks to fill.
    logits_finite, guided_finite: bool [], False once a number was NaN or Inf.
    """

    def __init__(self, model: Denoiser, shape: CanvasShape) -> None:
        def zeros(*sizes: int, dtype: torch.dtype = torch.int64) -> Tensor:
            return torch.zeros(sizes, dtype=dtype, device=model.device)

        self.shape = shape
        batch, length = shape.batch, shape.length
        self.ids, self.rows = zeros(batch, length), zeros(batch)
        self.seed, self.step, self.count = (zeros() for _ in range(3))
        self.share = zeros(dtype=torch.float32)
        self.logits_finite, self.guided_finite = zeros(dtype=torch.bool), zeros(dtype=torch.bool)
        self.dtype = torch.float32  # of hidden states: a step notes it
        self._source = zeros(batch, length)
        self._prompt, self._block, self._window = zeros(), zeros(length), zeros(length)
        self._real = zeros(shape.computed, length, dtype=torch.bool) if shape.padded else None
        self._context: AttentionContext | None = None
        if isinstance(model, Decoder) and not shape.padded:
            self._context = model.context((shape.computed, length))
        self._turned: tuple[Tensor, Tensor] | None = None  # cos and sin of the window
        self._kept: tuple[KeyValues, ...] = ()
        self._states: Tensor | None = None

    def start(self, model: Denoiser, ids: Tensor, real: Tensor | None, prompt: int, rows: Sequence[int]) -> None:
        """Puts a batch in place: ids int64 [b, n], n <= t, real bool alike; its prompts are `prompt` tokens long."""
        length = ids.shape[1]
        self.ids[:, :length] = ids
        self.ids[:, length:] = model.shape.pad_token
        self.rows.copy_(torch.tensor(rows))
        self._prompt.fill_(prompt)
        self.logits_finite.fill_(True)
        self.guided_finite.fill_(True)
        whole = torch.zeros(self.ids.shape, dtype=torch.bool, device=self.ids.device)
        whole[:, :length] = True if real is None else real
        self._source.copy_(sources(model.shape, whole))
        if self._real is not None:
            self._real.copy_(torch.cat((whole, whole)) if self.shape.guided else whole)
            self._place_context(model, self._real)

    def _place_context(self, model: Denoiser, real: Tensor) -> None:
        if not isinstance(model, Decoder):
            return
        given, own = model.context(real.shape, real), self._context
        if own is None or own.mask is None or given.mask is None:
            self._context = given
            return
        own.cos.copy_(given.cos)
        own.sin.copy_(given.sin)
        own.mask.copy_(given.mask)

    @property
    def keeps(self) -> bool:
        """Whether it has room for keys and values."""
        return self._states is not None

    def room(self, model: Denoiser) -> int:
        """Keys, values and hidden states of all tokens, as a number of values."""
        shape = model.shape
        tokens = self.shape.computed * self.shape.length
        return tokens * (2 * shape.layers * shape.kv_heads * shape.head_width + shape.width)

    def keep(self, model: Denoiser, whole: Tensor) -> None:
        """Takes `room` values [n] of the model's dtype for them."""
        shape, rows, length = model.shape, self.shape.computed, self.shape.length
        states = rows * length * shape.width
        self._states = whole[:states].view(rows, length, shape.width)
        parts = whole[states:].view(shape.layers, 2, rows, shape.kv_heads, length, shape.head_width)
        self._kept = tuple(KeyValues(keys, values) for keys, values in parts)

    def window(self, first: int, begin: int) -> None:
        """The steps from here on fill tokens from `first` on, and compute windows from `begin` on.

        What follows from that is computed now, once for all of them.
        """
        every = torch.arange(self.ids.shape[1], device=self.ids.device)
        for own, start in ((self._block, first), (self._window, begin)):
            own.copy_((every + start).clamp_(max=len(every) - 1))
        if not self.keeps or self._context is None:
            return
        tables = (self._context.cos, self._context.sin)
        if self._turned is None:
            self._turned = (torch.empty_like(tables[0]), torch.empty_like(tables[1]))
        for own, table in zip(self._turned, tables, strict=True):
            own.copy_(table.index_select(2, self._window))

    def places(self, count: int) -> Tensor:
        """int64 [b, count]: of the first tokens of the block."""
        return self._block[:count].expand(len(self.ids), -1)

    def commit(
        self, model: Denoiser, tokens: Tensor, confidence: Tensor, count: Tensor, sure: Sure
    ) -> tuple[Tensor, Tensor]:
        """Commits of the tokens int64 [b, n] that are offered for the block, as `qspec.models.commit` says."""
        places, mask = self._block[: tokens.shape[1]], model.shape.mask_token
        return operations_of(model).commit(self.ids, places, tokens, confidence, count, mask, sure)

    def uniform(self, places: Tensor, purpose: Purpose, count: int | None = None) -> Tensor:
        """This step's random numbers for the places [b, n] (`noise.uniform`); a place counts from the prompt's end."""
        return uniform(self.seed, self.step, self.rows, places - self._prompt, purpose, count)

    def predicting(self, model: Denoiser, places: Tensor, part: Pass) -> Tensor:
        """One pass: x [b or 2 b, n, d] that `model.finish` turns into the logits of the tokens at places [b, n]."""
        ids = self.ids
        if self.shape.guided:
            prompts = torch.arange(ids.shape[1], device=ids.device) < self._prompt
            ids = torch.cat((ids, ids.masked_fill(prompts, model.shape.mask_token)))
        states = self._computed(model, ids, part)
        self.dtype = states.dtype
        source = self._source.gather(1, places) if model.shape.shift else places
        if self.shape.guided:
            source = torch.cat((source, source))
        return states.gather(1, source.unsqueeze(-1).expand(-1, -1, states.shape[2]))

    def _computed(self, model: Denoiser, ids: Tensor, part: Pass) -> Tensor:
        """x [b, t, d] of all tokens; those outside a window are as the last whole pass left them."""
        context = self._context
        if context is None or not isinstance(model, Decoder):
            return model.hidden(ids, None if self._real is None else self._real.long())
        if not part.kept:
            return model.through(ids, context)
        assert self._states is not None  # `keep` came before
        if part.tokens is None:
            return self._states.copy_(model.through(ids, context, self._kept))
        assert self._turned is not None
        tokens = self._window[: part.tokens]
        cos, sin = (table[:, :, : part.tokens].contiguous() for table in self._turned)
        window = replace(context, cos=cos, sin=sin, tokens=tokens)
        states = model.through(ids.index_select(1, tokens), window, self._kept)
        return self._states.index_copy_(1, tokens, states)

    def check(self, model: Denoiser, guidance: NumericsError | None = None) -> None:
        """Errors: NumericsError once the logits were not finite, or, as given, the guided ones."""
        logits, guided = torch.stack((self.logits_finite, self.guided_finite)).tolist()
        if not logits:
            raise not_finite(model, self.dtype)
        if not guided and guidance is not None:
            raise guidance
