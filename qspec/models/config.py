"""Reads a checkpoint's config.json: enough for the plan, without weights and without torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from qspec.errors import InputError
from qspec.files import read_input
from qspec.models.family import DecoderShape, Family
from qspec.models.registry import family_of

MAX_CONFIG_BYTES = 1 << 20


def read_config(folder: Path | str) -> tuple[Family, DecoderShape, dict[str, Any]]:
    """Family, shape and raw keys of `folder`/config.json.

    Errors: InputError, naming the file, where it is absent, not JSON, or describes no known model.
    """
    folder = Path(folder)
    config = read_json(folder / "config.json", MAX_CONFIG_BYTES)
    try:
        family = family_of(config)
        return family, family.shape(config), config
    except InputError as error:
        where = f"{folder}/{error.where or 'config.json'}"
        raise InputError(error.what, where=where, hint=error.hint) from error


def read_json(path: Path, limit: int) -> dict[str, Any]:
    """The JSON object in a file of at most `limit` bytes. Errors: InputError naming the file."""
    try:
        raw = read_input(path, limit)
    except FileNotFoundError as error:
        hint = "give the folder of a checkpoint: config.json beside *.safetensors"
        raise InputError(f"{path.name} is missing", where=str(path), hint=hint) from error
    except OSError as error:
        raise InputError(f"{path.name} cannot be read: {error.strerror}", where=str(path)) from error
    return parse_json(raw, path, path.name)


def parse_json(raw: bytes, path: Path, part: str) -> dict[str, Any]:
    """The JSON object in bytes from `path`; `part` names them. Errors: InputError naming the file."""
    try:
        value = json.loads(raw.decode("utf-8"), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{part} is not valid JSON: {_reason(error)}", where=str(path)) from error
    if not isinstance(value, dict):
        raise InputError(f"{part} must hold a JSON object", where=str(path))
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """JSON allows a repeated key and Python keeps the last; here it is an error."""
    table: dict[str, Any] = {}
    for key, value in pairs:
        if key in table:
            raise ValueError(f"key {key[:80]!r} stands twice")
        table[key] = value
    return table


def _reason(error: ValueError | RecursionError) -> str:
    return "nested too deeply" if isinstance(error, RecursionError) else str(error)
