"""Loads grammar/qspec.lark as a LALR parser, from tables cached in the user's cache folder where they are there.

Building the tables takes most of what `qspec check` may take, so they are kept as JSON (never a pickle: a cache that
somebody else could write must not be able to run code), named after the grammar's digest and lark's version. A cache
that is absent, unreadable, corrupt or not ours is built anew; one that cannot be written is only slower.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from lark import Lark
from lark import __version__ as lark_version

from qspec import resources

BLOCKS = ("recipe", "calibrate", "scheme", "evaluate", "emit")
LINES = ("version", "extends", "param", "layers", "apply")
STARTS = [
    *LINES,
    *(f"{kind}_head" for kind in BLOCKS),
    *(f"{kind}_body" for kind in (*BLOCKS, "task")),
    "selector",
    "argument",
]
_LAYOUT = 1  # of the cache file


@cache
def parser() -> Lark:
    """The parser with one start rule for each kind of statement."""
    grammar = (resources.grammar() / "qspec.lark").read_text(encoding="utf-8")
    digest = hashlib.sha256(f"{_LAYOUT} {lark_version} {STARTS}\n{grammar}".encode()).hexdigest()
    path = cache_folder() / f"grammar-{digest[:32]}.json"
    cached = _load(path, digest)
    if cached is not None:
        return cached
    built = Lark(grammar, parser="lalr", start=STARTS, propagate_positions=True, maybe_placeholders=True)
    _save(built, path, digest)
    return built


def whole_file_parser() -> Lark:
    """The grammar's `file` rule, which accepts every recipe that the statements' parsers accept."""
    grammar = (resources.grammar() / "qspec.lark").read_text(encoding="utf-8")
    return Lark(grammar, parser="lalr", start="file", propagate_positions=True, maybe_placeholders=True)


def cache_folder() -> Path:
    """$XDG_CACHE_HOME/qspec, else ~/.cache/qspec."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base and Path(base).is_absolute() else Path("~/.cache").expanduser()) / "qspec"


def _load(path: Path, digest: str) -> Lark | None:
    """The cached parser, or None where there is none that can be trusted and read."""
    try:
        if hasattr(os, "getuid") and path.stat().st_uid != os.getuid():
            return None
        stored = json.loads(path.read_bytes())
        if stored["digest"] != digest or stored["check"] != _check(stored["tables"]):
            return None
        # Lark loads a pickle stream; this one is made here, from JSON, and holds only plain values.
        return Lark.load(io.BytesIO(pickle.dumps(_thaw(stored["tables"]))))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError):
        return None


def _save(built: Lark, path: Path, digest: str) -> None:
    stream = io.BytesIO()
    built.save(stream)
    tables = _freeze(pickle.loads(stream.getvalue()))
    content = json.dumps({"digest": digest, "check": _check(tables), "tables": tables})
    temporary = None
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".grammar-")  # created with mode 0600
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(content)
        Path(temporary).replace(path)
    except OSError:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)


def _check(tables: Any) -> str:
    return hashlib.sha256(json.dumps(tables).encode()).hexdigest()


# JSON has no tuples and no integer keys; lark's tables have both.


def _freeze(value: Any) -> Any:
    if isinstance(value, dict):
        return {"d": [[_freeze(k), _freeze(v)] for k, v in value.items()]}
    if isinstance(value, tuple):
        return {"t": [_freeze(v) for v in value]}
    if isinstance(value, list):
        return [_freeze(v) for v in value]
    if isinstance(value, set | frozenset):
        return {"s": sorted((_freeze(v) for v in value), key=str)}
    if value is None or isinstance(value, str | int | float):
        return value
    raise TypeError(f"lark's tables hold a {type(value).__name__}, which the cache cannot store")


def _thaw(value: Any) -> Any:
    if isinstance(value, list):
        return [_thaw(v) for v in value]
    if not isinstance(value, dict):
        return value
    if "d" in value:
        return {_thaw(k): _thaw(v) for k, v in value["d"]}
    return tuple(_thaw(v) for v in value["t"]) if "t" in value else {_thaw(v) for v in value["s"]}
