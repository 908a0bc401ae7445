"""Texts as they are denoised: every step's tokens when they are committed, on any canvas of prompts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Unpack

from qspec.models.sampler import (
    Denoiser,
    Sampling,
    Settings,
    Tokenizer,
    Wrapped,
    denoise,
    encoded,
    generation_settings,
    left_padded,
    until,
    unwrapped,
)
from qspec.models.samplers.run import Tally

MASK = "·"  # a token that is not yet decided


@dataclass(frozen=True)
class Commit:
    """What one step committed of one row.

    row: of the prompts. step: its number, from 0 on. positions: in the generated text, rising; tokens: there, the
    model's mask token where an edit took back what stood there (LLaDA2.2).
    text: all that is decided of the row by now, up to a token that ends it; other places are `MASK`.
    """

    row: int
    step: int
    positions: tuple[int, ...]
    tokens: tuple[int, ...]
    text: str


def stream(
    model: Denoiser | Wrapped,
    tokenizer: Tokenizer,
    prompt: str | Sequence[str],
    length: int = 128,
    steps: int | None = None,
    block: int | None = None,
    **sampling: Unpack[Sampling],
) -> Iterator[Commit]:
    """`qspec.generate` as an iterator over what its steps commit; a row's last text is the one that it returns.

    One model denoises one stream at a time. Errors: as `generate`, and UsageError where a stream goes on after another
    text was begun on the model.
    """
    model = unwrapped(model, tokenizer)
    settings = generation_settings(model.shape, length, steps, block, sampling)
    prompts = [prompt] if isinstance(prompt, str) else prompt
    return stream_ids(model, tokenizer, encoded(model, tokenizer, prompts), settings)


def stream_ids(
    model: Denoiser,
    tokenizer: Tokenizer,
    prompts: Sequence[Sequence[int]],
    settings: Settings,
    tally: Tally | None = None,
) -> Iterator[Commit]:
    """`stream` behind prompts of tokens, in one batch, with ready settings."""
    if not prompts:
        return
    drafts = [Draft(tokenizer, settings.length, model.shape.ends, model.shape.mask_token) for _ in prompts]
    for decided in denoise(model, *left_padded(prompts, model.shape.pad_token), settings):
        if tally is not None:
            tally.add(decided)
        step = decided.whole()
        committed, tokens = step.committed.tolist(), step.tokens.tolist()
        for row, draft in enumerate(drafts):
            positions = tuple(place for place, chosen in enumerate(committed[row]) if chosen)
            if positions:
                found = tuple(tokens[row][place] for place in positions)
                draft.commit(positions, found)
                yield Commit(row, step.index, positions, found, draft.text())


class Draft:
    """What is decided of a text of `length` tokens. ends: tokens behind which nothing is shown. mask: the token of a
    place that is open again."""

    def __init__(self, tokenizer: Tokenizer, length: int, ends: Sequence[int], mask: int) -> None:
        self._tokenizer, self._ends, self._mask = tokenizer, ends, mask
        self._tokens: list[int | None] = [None] * length

    def commit(self, positions: Sequence[int], tokens: Sequence[int]) -> None:
        for place, token in zip(positions, tokens, strict=True):
            self._tokens[place] = None if token == self._mask else token

    def text(self) -> str:
        """The decided tokens as text, up to the first end; others as `MASK`."""
        shown: list[str] = []
        for decided, run in groupby(self._tokens, lambda token: token is not None):
            places = list(run)
            tokens = [token for token in places if token is not None]
            kept = until(tokens, *self._ends)
            shown.append(self._tokenizer.decode(kept, skip_special_tokens=True) if decided else MASK * len(places))
            if len(kept) < len(tokens):
                break
        return "".join(shown)
