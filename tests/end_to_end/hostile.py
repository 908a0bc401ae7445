"""Manifests that somebody changed and sealed again: one field at a time, in every way."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from qspec.manifest import content_digest

MODULES = 3  # records of the module table that are mutated
OTHERS: tuple[Any, ...] = (
    None, True, -1, 0, 2**70, 1.5, float("inf"), "", "x", "\x1b[31m", "../../etc/passwd", "a" * 300, [], [[]], [None],
    ["x", "x"], {}, {"a": {"b": [{}]}},
)  # fmt: skip


def mutated(manifest: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(what was done, the content), digest left as it was."""
    for path in _paths(manifest, ()):
        where = ".".join(map(str, path))
        for other in OTHERS:
            if _get(manifest, path) != other or type(_get(manifest, path)) is not type(other):
                yield f"{where} = {other!r}"[:100], _with(manifest, path, other)
        yield f"{where} deleted", _without(manifest, path)
        if isinstance(value := _get(manifest, path), dict):
            yield f"{where}.unknown", _with(manifest, (*path, "unknown"), 1)
        if isinstance(value, list) and value:
            yield f"{where} doubled", _with(manifest, path, value + value)
            yield f"{where} turned", _with(manifest, path, value[::-1])
            yield f"{where} shorter", _with(manifest, path, value[1:])


def seal(folder: Path, content: dict[str, Any]) -> None:
    """Writes the manifest with the digest that belongs to it."""
    content = {key: value for key, value in content.items() if key != "digest"}
    content["digest"] = content_digest(content)
    (folder / "qspec.json").write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def _paths(value: Any, path: tuple[str | int, ...]) -> Iterator[tuple[str | int, ...]]:
    if path:
        yield path
    if isinstance(value, dict):
        keys = list(value)[:2] if path and path[-1] == "files" else value
        for key in keys:
            if key != "digest":
                yield from _paths(value[key], (*path, key))
    if isinstance(value, list):
        chosen = value[1 : 1 + MODULES] if path == ("modules",) else value[:1]
        for index, item in enumerate(value):
            if any(item is one for one in chosen):
                yield from _paths(item, (*path, index))


def _get(value: Any, path: tuple[str | int, ...]) -> Any:
    for step in path:
        value = value[step]
    return value


def _with(manifest: dict[str, Any], path: tuple[str | int, ...], value: Any) -> dict[str, Any]:
    new = copy.deepcopy(manifest)
    _get(new, path[:-1])[path[-1]] = value
    return new


def _without(manifest: dict[str, Any], path: tuple[str | int, ...]) -> dict[str, Any]:
    new = copy.deepcopy(manifest)
    del _get(new, path[:-1])[path[-1]]
    return new
