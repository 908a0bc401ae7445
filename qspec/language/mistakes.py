"""What a parser's error means to the author: one sentence, one next step, the word that was probably
meant."""

from __future__ import annotations

from dataclasses import dataclass

from qspec.diagnostics import closest, listed, quote
from qspec.language.fields import settings
from qspec.language.grammar import Mismatch
from qspec.language.spec import BLOCK_CLASSES, Weighting

_FORMS = {  # start rule -> how its statement looks
    "version": "qspec 1",
    "extends": 'extends "base.qs"',
    "param": "param NAME = VALUE",
    "layers": "layers SELECTOR use SCHEME, or layers SELECTOR keep",
    "apply": "apply PASS(PARAMETER = VALUE) on SELECTOR",
    "recipe_head": "recipe NAME {",
    "scheme_head": "scheme NAME {",
}


@dataclass(frozen=True)
class Mistake:
    """A syntax error in a piece: characters [start, end) of it, and what to write there instead, where that
    is clear."""

    code: str
    message: str
    hint: str
    start: int
    end: int
    instead: str | None = None


def describe(error: Mismatch, code: str, start: str, block: str | None = None) -> Mistake:
    """The mistake that made the parser stop in `code`, which it read with the rule `start` (a body: of
    `block`)."""
    found, at, end = error.found, error.start, error.end
    if not found:
        at, end = max(0, len(code) - 1), max(1, len(code))
    words = [name.strip("`") for name in error.names if name.startswith("`") and name[1].isalpha()]
    guess = closest(found, words) if found else None
    keys = keywords(block) if block else ()
    between = bool(keys) and set(keys) <= set(words)  # another setting could have come
    if block == "calibrate" and found in settings(Weighting) and between:
        hint = "write a comma before it, as in `weigh masked 1.0, unmasked 0.5`"
        return Mistake("QS005", f"{quote(found)} stands alone", hint, at, end, f", {found}")
    if found[:1].isalpha() and between and (guess is None or guess in keys):
        hint = f"did you mean `{guess}`?" if guess else _belongs(found, str(block), keys)
        return Mistake("QS007", f"{quote(found)} is not a setting of `{block}`", hint, at, end, guess)
    if guess:
        return Mistake("QS005", str(error), f"did you mean `{guess}`?", at, end, guess)
    if found == "=" and block:
        return Mistake("QS005", str(error), "a setting has no `=`: leave it out", at, end, "")
    return Mistake("QS005", str(error), _form(code, at, start, block), at, end)


def keywords(block: str) -> tuple[str, ...]:
    """The settings of a block."""
    return tuple(settings(BLOCK_CLASSES[block]))


def owner(word: str) -> str | None:
    """The first block that has such a setting."""
    return next((block for block in BLOCK_CLASSES if word in keywords(block)), None)


def _form(code: str, at: int, start: str, block: str | None) -> str:
    """How the statement, or the setting around the mistake, looks."""
    if block is None:
        return f"the form is: {_FORMS.get(start, start.removesuffix('_head') + ' {')}"
    known, read = settings(BLOCK_CLASSES[block]), code[:at].split()
    keys = [word for before, word in zip(["", *read], read, strict=False) if word in known and before not in known]
    key = keys[-1] if keys else next(iter(known))
    return f"the form is: {key} {known[key].form}"


def _belongs(word: str, block: str, keys: tuple[str, ...]) -> str:
    has = f"`{block}` has {listed(keys, 'and')}"
    elsewhere = owner(word)
    return f"`{word}` belongs to `{elsewhere}`; {has}" if elsewhere else has
