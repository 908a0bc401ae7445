"""What a parser's error means to the author: one sentence, one next step, the word that was probably
meant."""

from __future__ import annotations

from dataclasses import dataclass

from qspec.diagnostics import closest, listed, quote
from qspec.language.grammar import END, Mismatch, literals

SETTINGS = {  # block -> its keywords
    "recipe": ("family", "model"),
    "calibrate": ("text", "samples", "length", "mask", "draws", "weigh", "seed"),
    "scheme": ("weights", "activations"),
    "search": (
        "offer",
        "budget",
        "loss",
        "samples",
        "length",
        "draws",
        "probe",
        "fused",
        "refine",
        "gap",
        "seed",
    ),
    "evaluate": ("nelbo", "task"),
    "task": ("shots", "length", "steps", "block", "limit"),
    "emit": ("kernels", "regime"),
}

WEIGHTS = ("masked", "unmasked", "certainty")  # what stands after `weigh`, separated by commas

_FORMS = {  # start rule -> how its statement looks
    "version": "qspec 1",
    "extends": 'extends "base.qs"',
    "param": "param NAME = VALUE",
    "layers": "layers SELECTOR use SCHEME, or layers SELECTOR keep",
    "apply": "apply PASS(PARAMETER = VALUE) on SELECTOR",
    "recipe_head": "recipe NAME {",
    "calibrate_head": "calibrate {",
    "scheme_head": "scheme NAME {",
    "search_head": "search {",
    "evaluate_head": "evaluate {",
    "emit_head": "emit {",
    "selector": "blocks[*].mlp.down",
}

_SETTING_FORMS = {
    "family": "family NAME, or family NAME, NAME",
    "model": 'model "ID" revision "REVISION"',
    "text": 'text "NAME", text file("PATH") or text rollouts(prompts = "NAME")',
    "mask": "mask uniform(LOW, HIGH), grid(LOW, HIGH), prefix(LOW, HIGH), fixed(SHARE) or none",
    "weigh": "weigh masked NUMBER, unmasked NUMBER, or weigh certainty",
    "weights": "weights FORMAT per GRANULARITY symmetric clip CLIP",
    "activations": "activations FORMAT per GRANULARITY symmetric clip CLIP",
    "offer": "offer SCHEME, SCHEME on SELECTOR",
    "budget": "budget NUMBER bits, NUMBER GiB, NUMBER GiB memory, NUMBER ms for REGIME",
    "loss": 'loss kl on "TEXT", loss nelbo on "TEXT", or loss task NAME',
    "probe": "probe forward, noise or fisher",
    "fused": "fused true, or fused false",
    "nelbo": 'nelbo on "TEXT" samples NUMBER',
    "task": "task NAME { SETTINGS }",
    "kernels": "kernels triton for TARGET, TARGET",
    "regime": "regime NAME, NAME",
}

_SHOWN = {
    "NAME": "a name",
    "NUMBER": "a number",
    "STRING": "a string in quotes",
    "REFERENCE": "a `$param`",
    "SIZE": "a size such as `128x128`",
    END: "the end of the line",
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
    names = sorted((_shown(t) for t in error.expected), key=lambda n: (n[0] != "`", n))
    words = [n.strip("`") for n in names if n.startswith("`") and n[1].isalpha()]
    guess = closest(found, words) if found else None
    keys = SETTINGS.get(block or "", ())
    if block == "calibrate" and found in WEIGHTS and set(keys) <= set(words):
        hint = "write a comma before it, as in `weigh masked 1.0, unmasked 0.5`"
        return Mistake("QS005", f"{quote(found)} stands alone", hint, at, end, f", {found}")
    if found[:1].isalpha() and keys and set(keys) <= set(words) and (guess is None or guess in keys):
        hint = f"did you mean `{guess}`?" if guess else _belongs(found, str(block), keys)
        return Mistake("QS007", f"{quote(found)} is not a setting of `{block}`", hint, at, end, guess)
    what = f"found {quote(found)}" if found else "the line ends"
    message = f"{what} where {_choice(names) or 'the end'} was expected"
    if guess:
        return Mistake("QS005", message, f"did you mean `{guess}`?", at, end, guess)
    if found == "=" and block:
        return Mistake("QS005", message, "a setting has no `=`: leave it out", at, end, "")
    return Mistake("QS005", message, _form(code, at, start, block), at, end)


def _shown(terminal: str) -> str:
    """A terminal as an author would write it."""
    if terminal in _SHOWN:
        return _SHOWN[terminal]
    return f"`{literals()[terminal]}`"


def _choice(names: list[str]) -> str:
    wanted = names if len(names) <= 6 else [*names[:6], "…"]
    return f"{', '.join(wanted[:-1])} or {wanted[-1]}" if len(wanted) > 1 else "".join(wanted)


def _form(code: str, at: int, start: str, block: str | None) -> str:
    """How the statement, or the setting around the mistake, looks."""
    if block is None:
        return f"the form is: {_FORMS.get(start, start)}"
    keys = [word for word in code[:at].split() if word in SETTINGS[block]]
    key = keys[-1] if keys else SETTINGS[block][0]
    return f"the form is: {_SETTING_FORMS.get(key, f'{key} NUMBER')}"


def _belongs(word: str, block: str, keys: tuple[str, ...]) -> str:
    owner = next((kind for kind, names in SETTINGS.items() if word in names), None)
    has = f"`{block}` has {listed(keys, 'and')}"
    return f"`{word}` belongs to `{owner}`; {has}" if owner else has
