"""The regular expressions that `module("...")` takes: a safe part of Python's, always anchored at both ends.

A recipe from a stranger must not be able to hang a compile, so what makes matching exponential is not in
the dialect:
no repeated groups, no back references, no lookaround, and at most three repetitions without a bound.
"""

from __future__ import annotations

import re
from functools import lru_cache

MAX_LENGTH = 200
MAX_REPEATS = 3

_TOKEN = re.compile(
    r"""(?P<escape>\\[.\\dDwW\-\[\](){}|*+?$^/]) | (?P<bad_escape>\\.?) | (?P<cls>\[\^?[A-Za-z0-9_.\-]+\])
      | (?P<repeat>[*+]|\{[0-9]{1,3}(,[0-9]{0,3})?\}) | (?P<optional>\?)
      | (?P<special>\(\?) | (?P<open>\() | (?P<close>\)) | (?P<bar>\|) | (?P<any>\.)
      | (?P<literal>[A-Za-z0-9_\-/:,\ ]) | (?P<bad>.)""",
    re.VERBOSE | re.DOTALL,
)


def problem(pattern: str) -> str | None:
    """Why the pattern is not accepted, as a sentence's end; None where it is fine."""
    if not pattern:
        return "it is empty"
    if len(pattern) > MAX_LENGTH:
        return f"it has {len(pattern)} characters; {MAX_LENGTH} are the most"
    return _scan(pattern) or _compiles(pattern)


def _scan(pattern: str) -> str | None:
    repeats, depth, before = 0, 0, ""
    for token in _TOKEN.finditer(pattern):
        kind = token.lastgroup or ""
        match kind:
            case "bad" | "bad_escape" | "special":
                return f"`{token[0] if token[0].isprintable() else '?'}` is not part of the dialect"
            case "repeat" | "optional" if before in ("repeat", "optional"):
                return "a repetition is repeated"
            case "repeat" if before == "close":
                return "a group is repeated, which can take forever"
            case "repeat":
                repeats += 1
            case "open":
                depth += 1
            case "close":
                depth -= 1
        if depth > 8 or depth < 0:
            return "its groups are nested too deeply" if depth > 0 else "a `)` closes nothing"
        before = kind
    if repeats > MAX_REPEATS:
        return f"it has {repeats} repetitions; {MAX_REPEATS} are the most"
    return None


def _compiles(pattern: str) -> str | None:
    try:
        compiled(pattern)
    except (re.error, OverflowError) as error:
        return str(error)
    return None


@lru_cache(maxsize=256)
def compiled(pattern: str) -> re.Pattern[str]:
    """The pattern, compiled; use `fullmatch`."""
    return re.compile(pattern, re.ASCII)
