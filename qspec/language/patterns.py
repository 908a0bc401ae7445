"""The regular expressions that `module("...")` takes: a part of Python's, always anchored at both ends.

A recipe from a stranger must not be able to hang a compile. Python's own `re` tries one way after another, which takes
forever for `(.|m)?` thirty times over. Here a pattern is an automaton with one state for each character that it takes
(Glushkov's), and all of its ways are followed at once: matching takes len(text) steps over at most
MAX_LENGTH + MAX_REPEATS * 999 states, whatever the pattern.
"""

from __future__ import annotations

import re
from functools import lru_cache

MAX_LENGTH = 200
MAX_REPEATS = 3
MAX_DEPTH = 8

_TOKEN = re.compile(
    r"""(?P<escape>\\[.\\dDwW\-\[\](){}|*+?$^/]) | (?P<bad_escape>\\.?) | (?P<cls>\[\^?(?![^\]]*--)[A-Za-z0-9_.\-]+\])
      | (?P<repeat>[*+]|\{[0-9]{1,3}(,[0-9]{0,3})?\}) | (?P<optional>\?)
      | (?P<special>\(\?) | (?P<open>\() | (?P<close>\)) | (?P<bar>\|) | (?P<any>\.)
      | (?P<literal>[A-Za-z0-9_\-/:,\ ]) | (?P<bad>.)""",
    re.VERBOSE | re.DOTALL,
)
_TAKEN = 1  # the set of states that holds only state 0: the whole text was taken
_KEPT_ROWS = 512  # sets of states that a pattern remembers


def problem(pattern: str) -> str | None:
    """Why the pattern is not accepted, as a sentence's end; None where it is fine."""
    if not pattern:
        return "it is empty"
    if len(pattern) > MAX_LENGTH:
        return f"it has {len(pattern)} characters; {MAX_LENGTH} are the most"
    return _scan(pattern)


def _scan(pattern: str) -> str | None:
    repeats, depth, before = 0, 0, ""
    for token in _TOKEN.finditer(pattern):
        kind = token.lastgroup or ""
        match kind:
            case "bad" | "bad_escape" | "special":
                return f"`{token[0] if token[0].isprintable() else '?'}` is not part of the dialect"
            case "repeat" | "optional" if before in ("repeat", "optional"):
                return "a repetition is repeated"
            case "repeat" | "optional" if before in ("", "open", "bar"):
                return f"its `{token[0]}` repeats nothing"
            case "repeat" if before == "close":
                return "a group is repeated"
            case "repeat":
                repeats += 1
                low, high = _count(token[0])
                if high is not None and low > high:
                    return f"`{token[0]}` counts from {low} down to {high}"
            case "cls" if not _compiles(token[0]):
                return f"`{token[0]}` holds a range that goes backwards"
            case "open":
                depth += 1
            case "close":
                depth -= 1
        if depth > MAX_DEPTH or depth < 0:
            return "its groups are nested too deeply" if depth > 0 else "a `)` closes nothing"
        before = kind
    if depth:
        return "a `(` is never closed"
    if repeats > MAX_REPEATS:
        return f"it has {repeats} repetitions; {MAX_REPEATS} are the most"
    return None


def _compiles(cls: str) -> bool:
    try:
        re.compile(cls)
    except re.error:
        return False
    return True


def _count(repeat: str) -> tuple[int, int | None]:
    """Least and most of `*`, `+`, `{2}`, `{2,}` or `{2,5}`; None: any number."""
    match repeat:
        case "*":
            return 0, None
        case "+":
            return 1, None
    low, comma, high = repeat[1:-1].partition(",")
    return int(low), int(high) if high else None if comma else int(low)


class Pattern:
    """A pattern that `problem` accepts, as an automaton. Sets of its states are whole numbers, one bit a state.

    State 0 has taken the whole text; every other one waits for a character that its token takes, such as `[0-9]`.
    """

    def __init__(self, pattern: str) -> None:
        self._after = [0]  # state -> the states that come after its character
        self._waiting: dict[str, int] = {}  # token -> the states that wait for a character it takes
        self._rows: dict[int, _Row] = {}
        self._start = self._built(pattern)

    def fullmatch(self, text: str) -> bool:
        """Whether the pattern takes the whole text, as Python's `re.fullmatch` with re.ASCII would."""
        row = self._row(self._start)
        for char in text:
            row = row[char]
            if not row.states:
                return False
        return bool(row.states & _TAKEN)

    def _row(self, states: int) -> _Row:
        """What is known of a set of states."""
        row = self._rows.get(states)
        if row is None:
            if len(self._rows) == _KEPT_ROWS:
                self._rows.clear()
            row = self._rows[states] = _Row(self, states)
        return row

    def step(self, states: int, char: str) -> _Row:
        """The states after a character."""
        taking, found = 0, 0
        for token, waiting in self._waiting.items():
            if waiting & states and _takes(token, char):
                taking |= waiting & states
        while taking:
            one = taking & -taking
            found |= self._after[one.bit_length() - 1]
            taking ^= one
        return self._row(found)

    # --- from the pattern ---

    def _built(self, pattern: str) -> int:
        """The states before the first character, built from the pattern's end: what comes after a part is known then.

        then: the states after what was read so far of the current alternative. Around each group, the same of
        what encloses it, with the alternatives that were read and the states after them.
        """
        then, alternatives, end = _TAKEN, 0, _TAKEN
        groups: list[tuple[int, int, int]] = []
        repeat = ""
        for token in reversed(list(_TOKEN.finditer(pattern))):
            match token.lastgroup:
                case "repeat" | "optional":
                    repeat = token[0]
                    continue
                case "close":
                    groups.append((alternatives, end, then if repeat else 0))
                    alternatives, end = 0, then
                case "bar":
                    alternatives, then = alternatives | then, end
                case "open":
                    then |= alternatives
                    alternatives, end, skipped = groups.pop()
                    then |= skipped
                case _:
                    then = self._repeated(token[0], repeat, then)
            repeat = ""
        return then | alternatives

    def _repeated(self, token: str, repeat: str, then: int) -> int:
        """The states before a token that is taken as often as its repetition says."""
        if not repeat:
            return self._state(token, then)
        if repeat == "?":
            return then | self._state(token, then)
        low, high = _count(repeat)
        if high is None:
            again = then | (1 << len(self._after))
            then = self._state(token, again) | (then if low == 0 else 0)
            low = max(0, low - 1)
        else:
            end = then
            for _ in range(high - low):
                then = end | self._state(token, then)
        for _ in range(low):
            then = self._state(token, then)
        return then

    def _state(self, token: str, after: int) -> int:
        """A new state that waits for the token, as a set."""
        one = 1 << len(self._after)
        self._after.append(after)
        self._waiting[token] = self._waiting.get(token, 0) | one
        return one


class _Row(dict[str, "_Row"]):
    """A set of states, and the sets that follow it for the characters that were met so far."""

    def __init__(self, pattern: Pattern, states: int) -> None:
        super().__init__()
        self.pattern = pattern
        self.states = states

    def __missing__(self, char: str) -> _Row:
        row = self[char] = self.pattern.step(self.states, char)
        return row


@lru_cache(maxsize=1024)
def _takes(token: str, char: str) -> bool:
    """Whether a token, which is one character long, takes the character."""
    return re.fullmatch(token, char, re.ASCII) is not None


@lru_cache(maxsize=256)
def compiled(pattern: str) -> Pattern:
    """The automaton of a pattern that `problem` accepts; use `fullmatch`."""
    return Pattern(pattern)
