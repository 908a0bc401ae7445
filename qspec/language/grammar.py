"""The tables of grammar/qspec.lark: made by lark, kept in the user's cache folder, read by
`qspec.language.lalr`.

The cache is a file of the user's own, mode 0600, named after the digest of the grammar, this file's layout
and Python's version: a checksum, then plain values in Python's marshal form, as in a .pyc (never a pickle:
reading it runs nothing).
One that is absent, corrupt or somebody else's is built anew; one that cannot be written only costs time.
"""

from __future__ import annotations

import hashlib
import marshal
import os
import sys
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qspec import resources
from qspec.language.lalr import REDUCE, SHIFT, Rule, Tables

if TYPE_CHECKING:
    from lark import Lark

BLOCKS = ("recipe", "calibrate", "scheme", "search", "evaluate", "emit")
LINES = ("version", "extends", "param", "layers", "apply")
STARTS = [
    *LINES,
    *(f"{kind}_head" for kind in BLOCKS),
    *(f"{kind}_body" for kind in (*BLOCKS, "task")),
    "selector",
]
IGNORED = ("COMMENT", "WHITESPACE")
_LAYOUT = 3  # of the cache file
_CHECKSUM = 32  # bytes of a sha256 digest


@cache
def tables() -> Tables:
    """The tables with one start rule for each kind of statement."""
    made_of = f"{_LAYOUT} {sys.version_info[:2]} {STARTS}\n{_text()}"
    path = cache_folder() / f"grammar-{hashlib.sha256(made_of.encode()).hexdigest()[:32]}.tables"
    cached = _load(path)
    if cached is not None:
        return cached
    built = compiled(lark_parser(STARTS))
    _save(built, path)
    return built


def lark_parser(starts: list[str]) -> Lark:
    """Lark's own parser of the grammar, for the tables and for comparison."""
    from lark import Lark

    return Lark(_text(), parser="lalr", start=starts, propagate_positions=True, maybe_placeholders=True)


def cache_folder() -> Path:
    """$XDG_CACHE_HOME/qspec, else ~/.cache/qspec."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base and Path(base).is_absolute() else Path("~/.cache").expanduser()) / "qspec"


def _text() -> str:
    return (resources.grammar() / "qspec.lark").read_text(encoding="utf-8")


# --- from lark ---


def compiled(parser: Lark) -> Tables:
    """Lark's parse table, rules and terminals as plain values."""
    table = parser.parser.parser.parser.parse_table
    rules = {rule: i for i, rule in enumerate(parser.rules)}
    for row in table.states.values():
        for kind, target in row.values():
            if str(kind) == "Reduce":
                rules.setdefault(target, len(rules))
    actions = {
        state: {
            str(symbol): (REDUCE, rules[target]) if str(kind) == "Reduce" else (SHIFT, target)
            for symbol, (kind, target) in row.items()
        }
        for state, row in table.states.items()
    }
    words = [t for t in parser.terminals if type(t.pattern).__name__ == "PatternStr"]
    regexes = sorted((t for t in parser.terminals if t not in words), key=lambda t: -t.priority)
    return Tables(
        actions=actions,
        starts=dict(table.start_states),
        ends=dict(table.end_states),
        rules=tuple(_rule(rule) for rule in rules),
        literals={t.pattern.value: t.name for t in words},
        regexes=tuple((t.name, t.pattern.to_regexp()) for t in regexes),
        ignored=IGNORED,
    )


def _rule(rule: Any) -> Rule:
    """How lark builds the tree of a rule: filtered signs, inlined `_rules`, None for what `[...]` left
    out."""
    holes = "".join("01"[hole] for hole in rule.options.empty_indices) or "0" * len(rule.expansion)
    nones = [len(ones) for ones in holes.split("0")]
    kept, waiting = [], 0
    for i, symbol in enumerate(rule.expansion):
        waiting += nones[i]
        if not (symbol.is_term and symbol.filter_out):
            kept.append((i, not symbol.is_term and symbol.name.startswith("_"), waiting))
            waiting = 0
    return Rule(
        origin=str(rule.origin.name),
        name=str(rule.alias or rule.origin.name),
        size=len(rule.expansion),
        kept=tuple(kept),
        tail=waiting + nones[-1],
        expand=bool(rule.options.expand1 and not rule.alias),
    )


# --- the cache ---


def _load(path: Path) -> Tables | None:
    """The cached tables, or None where there are none that can be trusted and read."""
    try:
        if hasattr(os, "getuid") and path.stat().st_uid != os.getuid():
            return None
        content = path.read_bytes()
        checksum, data = content[:_CHECKSUM], content[_CHECKSUM:]
        if hashlib.sha256(data).digest() != checksum:
            return None
        actions, starts, ends, rules, *rest = marshal.loads(data)
        return Tables(actions, starts, ends, tuple(Rule(*rule) for rule in rules), *rest)
    except (OSError, ValueError, EOFError, TypeError):
        return None


def _save(built: Tables, path: Path) -> None:
    data = marshal.dumps((*built[:3], tuple(tuple(rule) for rule in built.rules), *built[4:]))
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}-{os.getpid()}")
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "wb") as file:
            file.write(hashlib.sha256(data).digest() + data)
        temporary.replace(path)
    except OSError:
        return  # a full or read-only disk: the tables are built again next time
