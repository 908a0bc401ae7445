"""Typed reads of a config.json: each returns a value that is present, of its type and in its range. No torch.

A config may come from anywhere, so a shape is never built from a value that was not looked at. Every failure
is an InputError that names the key.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from qspec.errors import InputError

Config = Mapping[str, Any]

# Larger than any published model by far; a config beyond them is corrupt or hostile.
MAX_LAYERS, MAX_HEADS = 1024, 4096
MAX_WIDTH, MAX_FFN = 1 << 17, 1 << 20
MAX_VOCAB, MAX_LENGTH = 1 << 24, 1 << 24


def integer(config: Config, key: str, low: int, high: int, default: int | None = None) -> int:
    """config[key] as an integer in [low, high]; `default` where the key is absent or null."""
    value = _present(config, key, default)
    if isinstance(value, bool) or not isinstance(value, int):
        raise bad(key, f"must be an integer, not {_shown(value)}")
    if not low <= value <= high:
        raise bad(key, f"is {_shown(value)}; it must lie in {low}..{high}")
    return value


def real(config: Config, key: str, low: float, high: float, default: float | None = None) -> float:
    """config[key] as a finite number in (low, high); `default` where the key is absent or null."""
    value = _present(config, key, default)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise bad(key, f"must be a number, not {_shown(value)}")
    if not low < value < high or not math.isfinite(value):
        raise bad(key, f"is {_shown(value)}; it must lie between {low:g} and {high:g}")
    return float(value)


def flag(config: Config, key: str, default: bool = False) -> bool:
    """config[key] as true or false; `default` where the key is absent or null."""
    value = config.get(key)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise bad(key, f"must be true or false, not {_shown(value)}")
    return value


def expect(config: Config, key: str, *allowed: object) -> None:
    """Refuses a key that asks for something our decoder does not compute; absent or null is allowed."""
    value = config.get(key)
    if value is not None and not any(value is item or value == item for item in allowed):
        names = " or ".join(_shown(item) for item in allowed)
        raise bad(key, f"is {_shown(value)}; only {names} is supported")


def heads(config: Config, width_key: str, heads_key: str, kv_key: str) -> tuple[int, int, int]:
    """(width, heads, kv heads): heads of even width that fill the width, and kv heads that divide them."""
    width = integer(config, width_key, 1, MAX_WIDTH)
    count = integer(config, heads_key, 1, MAX_HEADS)
    if width % count or (width // count) % 2:
        raise bad(heads_key, f"is {count}; {width_key} {width} does not divide into heads of even width")
    kv = integer(config, kv_key, 1, count, default=count)
    if count % kv:
        raise bad(kv_key, f"is {kv}; it must divide {heads_key} {count}")
    return width, count, kv


def bad(key: str, problem: str) -> InputError:
    """The error for one key."""
    return InputError(f"config.json: {key} {problem}", where=f"config.json: {key}")


def _present(config: Config, key: str, default: object) -> object:
    value = config.get(key)
    value = default if value is None else value
    if value is None:
        raise InputError(
            f"config.json: {key} is missing",
            where=f"config.json: {key}",
            hint="use the config.json that was published with the checkpoint",
        )
    return value


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
