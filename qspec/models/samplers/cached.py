"""Block-wise caching: the steps of a block compute a part of the canvas alone (Fast-dLLM, arXiv 2505.22618).

The first step of a block is a full pass, which keeps the keys and values of every token. The steps after it compute the
tokens of a window, and attend to all others as the first step found them:

    prefix   the window is the block and what follows it; the tokens before are kept
    dual     the window is the block; the tokens before and after are kept

Every token of these models sees every other, so kept keys and values are not what a full pass would compute once a
token has changed: the text may differ from that of a sampler without a cache. Nothing is cached unless it is asked for.

Where a token is predicted by the one before it (`models.shift`), the window starts one token earlier, unlike Fast-dLLM,
which commits the first token of a block in the first step instead.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, get_args

from torch import Tensor

from qspec.errors import UsageError
from qspec.models.decoder import Decoder, Window
from qspec.models.engine import Engine
from qspec.models.samplers.common import Around, Denoiser, WindowedDenoiser

Cache = Literal["prefix", "dual"]


def for_steps(model: Denoiser, cache: Cache | None, block: slice) -> Denoiser:
    """What the steps of one block call: the model, or the model with a cache of the tokens outside the block.

    block: from where to where on the canvas. Errors: UsageError where a cache is asked for and the model has none.
    """
    if cache is None:
        return model
    if not isinstance(model, Decoder | Engine):
        raise UsageError(f"a {type(model).__name__} keeps no keys and values", hint="leave cache out")
    start = max(0, block.start - int(model.shape.shift))
    return Cached(model, slice(start, block.stop if cache == "dual" else None))


def check_cache(cache: str | None) -> None:
    """Errors: UsageError for a cache that does not exist."""
    if cache is not None and cache not in get_args(Cache):
        raise UsageError(f"unknown cache {cache!r}", hint=f"choose one of {', '.join(get_args(Cache))}")


class Cached(Around[WindowedDenoiser]):
    """A `Denoiser` for the steps of one block: the first call computes all tokens, those after it `tokens` alone."""

    def __init__(self, model: WindowedDenoiser, tokens: slice) -> None:
        super().__init__(model)
        self.tokens = tokens
        self._window: Window | None = None
        self._states: Tensor | None = None

    def hidden(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """x [b, t, d] of all tokens; those outside the window are the first call's."""
        if self._window is None or self._states is None:
            whole = self.model.window(*input_ids.shape)
            self._window = replace(whole, tokens=self.tokens)
            self._states = self.model.hidden(input_ids, attention_mask, whole)
        else:
            self._states[:, self.tokens] = self.model.hidden(input_ids, attention_mask, self._window)
        return self._states
