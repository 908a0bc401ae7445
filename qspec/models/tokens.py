"""What a tokenizer and a model make of each other's tokens: text to ids, ids that are no text, the mask token.

The embedding often has more rows than the tokenizer has entries (padding to a multiple of 64), and a tokenizer may
have entries that the embedding lacks. This is the one place that knows of either.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

import torch

from qspec.errors import InputError
from qspec.models.decoder import Decoder
from qspec.models.family import NO_MASK, DecoderShape

PIECE = 1 << 16
WORD = re.compile(r"(?<=[A-Za-z]) (?=[A-Za-z])")


class Encodes(Protocol):
    """What turns text into ids; every transformers tokenizer does."""

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]: ...


class Lists(Protocol):
    """What tells all entries of a tokenizer, added ones too; every transformers tokenizer does."""

    def get_vocab(self) -> Mapping[str, int]: ...


def encode(tokenizer: Encodes, text: str, vocab: int, *, special: bool = False) -> list[int]:
    """The ids of a text, each a row of an embedding of `vocab` rows. special: with what the tokenizer adds, bos or eos.

    Errors: InputError for a string that is no valid text, and for a token that the model does not have.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"this is not valid text: {error.reason}", hint="give it in UTF-8") from error
    with library_errors("the tokenizer fails on a text", repr(shorten(text))):
        ids = tokenizer.encode(text, add_special_tokens=special)
    beyond = next((token for token in ids if not 0 <= token < vocab), None)
    if beyond is not None:
        raise InputError(
            f"the tokenizer turns this text into token {beyond}, and the model has tokens 0 to {vocab - 1}",
            where=repr(shorten(text)),
            hint="the tokenizer belongs to another model, or has tokens that the model was not enlarged for",
        )
    return ids


def encode_long(tokenizer: Encodes, text: str, vocab: int) -> list[int]:
    """`encode` of a text of any length, some `PIECE` characters at a time: whole, a mebibyte would take 200 MB.

    A piece ends before a space between two letters, where every tokenizer that cuts text into words begins one: the ids
    are those of the whole text.
    """
    ids, start = [], 0
    while start < len(text):
        found = WORD.search(text, start + PIECE)
        stop = found.start() if found else len(text)
        ids += encode(tokenizer, text[start:stop], vocab)
        start = stop
    return ids


def shorten(text: str) -> str:
    """A text's beginning, for a message."""
    return text if len(text) <= 80 else f"{text[:77]}..."


@contextmanager
def library_errors(what: str, where: str) -> Iterator[None]:
    """Turns into InputError what the tokenizers library raises at files that it does not understand: Exception itself,
    and the panics of its Rust code, which are no Exceptions."""
    try:
        yield
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        hint = "copy the tokenizer from the original model"
        raise InputError(f"{what}: {str(error)[:300]}", where=where, hint=hint) from error


def know_tokens(model: Decoder, tokenizer: Lists) -> Decoder:
    """The model, which from now on gives no probability to ids that the tokenizer lacks (`Decoder.absent`).

    Tokens that end a text stay possible: they are no text, but end one.
    """
    absent = torch.ones(model.shape.vocab, dtype=torch.bool)
    known = [token for token in tokenizer.get_vocab().values() if token < model.shape.vocab]
    absent[[*known, *model.shape.ends]] = False
    found = absent.to(model.device) if bool(absent.any()) else None
    if found is None or model.absent is None or not torch.equal(found, model.absent):
        model.absent = found  # a tensor that stays where it is, as steps that were captured read it
    return model


def check_mask_token(shape: DecoderShape, tokenizer: Any, where: str) -> None:
    """Errors: InputError where the config's mask token is not the tokenizer's, or stands for text or the end of it.

    tokenizer: of transformers. One that names no mask token must not have an ordinary entry at that id.
    """
    mask, own = shape.mask_token, tokenizer.mask_token_id
    if mask == NO_MASK:
        return
    entry = repr(tokenizer.convert_ids_to_tokens(mask)) if mask < len(tokenizer) else "no entry"
    hint = "give the config.json and the tokenizer that were published together"
    if own is not None and own != mask:
        theirs = f"{own} ({tokenizer.mask_token!r})"
        what = f"config.json: mask_token_id is {mask} ({entry}), and the tokenizer's mask token is {theirs}"
        raise InputError(what, where=where, hint=hint)
    for kind in ("eos", "pad", "bos", "unk"):
        if getattr(tokenizer, f"{kind}_token_id") == mask:
            raise InputError(
                f"config.json: mask_token_id is {mask}, the tokenizer's {kind} token {entry}", where=where, hint=hint
            )
    if own is None and mask in tokenizer.get_vocab().values() and mask not in tokenizer.added_tokens_decoder:
        what = f"config.json: mask_token_id is {mask}, which the tokenizer has as the ordinary word {entry}"
        raise InputError(what, where=where, hint=hint)
