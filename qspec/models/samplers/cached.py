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

from typing import Literal, get_args

from qspec.errors import UsageError
from qspec.models.decoder import Decoder
from qspec.models.samplers.common import Denoiser

Cache = Literal["prefix", "dual"]


def check_cache(cache: str | None) -> None:
    """Errors: UsageError for a cache that does not exist."""
    if cache is not None and cache not in get_args(Cache):
        raise UsageError(f"unknown cache {cache!r}", hint=f"choose one of {', '.join(get_args(Cache))}")


def require_keys(model: Denoiser) -> None:
    """Errors: UsageError for a model that keeps no keys and values."""
    if not isinstance(model, Decoder):
        raise UsageError(f"a {type(model).__name__} keeps no keys and values", hint="leave cache out")
