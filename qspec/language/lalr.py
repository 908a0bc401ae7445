"""Runs the LALR tables of the grammar: text -> tree, or where it stops and what could have come there.

Lark makes the tables (`qspec.language.grammar`); this little driver reads them, because importing lark
alone would take half of the time that `qspec check` may take. Trees and token choice are lark's (a test
compares them): keywords are words where the grammar wants a word, `[x]` leaves None, `_rules` and `?rules`
are inlined.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import NamedTuple, TypeAlias

END = "$END"
SHIFT, REDUCE = 0, 1


class Rule(NamedTuple):
    """What reducing does: take `size` symbols, keep those of `kept`, name the tree.

    kept: (index, whether to take its children instead, Nones before it). tail: Nones at the end.
    expand: a single child stands for the tree.
    """

    origin: str
    name: str
    size: int
    kept: tuple[tuple[int, bool, int], ...]
    tail: int
    expand: bool


class Tables(NamedTuple):
    """actions: state -> symbol -> (SHIFT, state) or (REDUCE, index of a rule). literals: keyword or sign ->
    terminal.

    regexes: (terminal, pattern) in the order in which they are tried; those named in `ignored` are dropped.
    """

    actions: dict[int, dict[str, tuple[int, int]]]
    starts: dict[str, int]
    ends: dict[str, int]
    rules: tuple[Rule, ...]
    literals: dict[str, str]
    regexes: tuple[tuple[str, str], ...]
    ignored: tuple[str, ...]


class Token(str):
    """A word of the text: its terminal's name and the characters [start, end) that it takes."""

    __slots__ = ("end", "start", "type")

    def __new__(cls, text: str, type_: str, start: int, end: int) -> Token:
        token = super().__new__(cls, text)
        token.type, token.start, token.end = type_, start, end
        return token

    type: str
    start: int
    end: int


class Tree(NamedTuple):
    """A rule's name, its children, and the characters [start, end) that it covers."""

    data: str
    children: list[Child]
    start: int
    end: int


Child: TypeAlias = Tree | Token | None


class Mismatch(Exception):  # noqa: N818 - an answer, which the parser turns into a diagnostic
    """The text stops making sense at [start, end): `found` ("" at its end), where one of `expected` could
    have come."""

    def __init__(self, found: str, start: int, end: int, expected: frozenset[str]) -> None:
        super().__init__(found)
        self.found, self.start, self.end, self.expected = found, start, end, expected


def run(tables: Tables, text: str, start: str) -> Tree | Token:
    """The tree of `text` for a start rule; raises Mismatch."""
    return _Run(tables, text, start).run()


class _Run:
    def __init__(self, tables: Tables, text: str, start: str) -> None:
        self.tables = tables
        self.text = text
        self.end = tables.ends[start]
        self.states = [tables.starts[start]]
        self.values: list[Tree | Token] = []

    def run(self) -> Tree | Token:
        lexer, ignored = _lexer(self.tables.regexes, tuple(self.tables.literals)), self.tables.ignored
        at = 0
        while at < len(self.text):
            match = lexer.match(self.text, at)
            if match is None:
                raise Mismatch(self.text[at], at, at + 1, self._accepted())
            if match.lastgroup not in ignored:
                self._feed(Token(match[0], self._type(match), at, match.end()))
            at = match.end()
        self._feed(Token("", END, at, at))
        return self.values[-1]

    def _type(self, match: re.Match[str]) -> str:
        """The terminal: a keyword only where the grammar wants it, or where it wants no name either."""
        literal, name = self.tables.literals.get(match[0]), str(match.lastgroup)
        wanted = self.tables.actions[self.states[-1]]
        if literal is not None and (literal in wanted or name not in wanted):
            return literal
        return name

    def _feed(self, token: Token) -> None:
        """Reduces as the token demands, then shifts it (the end is not shifted)."""
        while True:
            if token.type == END and self.states[-1] == self.end:
                return
            action = self.tables.actions[self.states[-1]].get(token.type)
            if action is None:
                raise Mismatch(str(token), token.start, token.end, self._accepted())
            kind, target = action
            if kind == SHIFT:
                self.states.append(target)
                self.values.append(token)
                return
            self._reduce(self.tables.rules[target])

    def _reduce(self, rule: Rule) -> None:
        taken = self.values[len(self.values) - rule.size :]
        if rule.size:
            del self.values[-rule.size :]
            del self.states[-rule.size :]
        children: list[Child] = []
        for index, inline, nones in rule.kept:
            children += [None] * nones
            part = taken[index]
            if inline and isinstance(part, Tree):
                children += part.children
            else:
                children.append(part)
        children += [None] * rule.tail
        self.states.append(self.tables.actions[self.states[-1]][rule.origin][1])
        only = children[0] if rule.expand and len(children) == 1 else None
        if only is not None:
            self.values.append(only)
        else:
            start, end = (taken[0].start, taken[-1].end) if taken else (0, 0)
            self.values.append(Tree(rule.name, children, start, end))

    def _accepted(self) -> frozenset[str]:
        """The terminals that could really come: those that lead to a shift after all their reductions."""
        wanted = self.tables.actions[self.states[-1]]
        return frozenset(t for t in wanted if (t.isupper() or t == END) and self._shifts(t))

    def _shifts(self, terminal: str) -> bool:
        states = list(self.states)
        while True:
            if terminal == END and states[-1] == self.end:
                return True
            action = self.tables.actions[states[-1]].get(terminal)
            if action is None:
                return False
            if action[0] == SHIFT:
                return True
            rule = self.tables.rules[action[1]]
            if rule.size:
                del states[-rule.size :]
            states.append(self.tables.actions[states[-1]][rule.origin][1])


@lru_cache(maxsize=4)
def _lexer(regexes: tuple[tuple[str, str], ...], literals: tuple[str, ...]) -> re.Pattern[str]:
    """One pattern for all tokens; signs go by length, words are told from names afterwards."""
    signs = sorted((re.escape(t) for t in literals if not t[0].isalpha()), key=len, reverse=True)
    groups = [f"(?P<{name}>{pattern})" for name, pattern in regexes]
    return re.compile("|".join([*groups, f"(?P<SIGN>{'|'.join(signs)})"]))
