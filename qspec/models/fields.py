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
MAX_LAYERS, MAX_HEADS, MAX_EXPERTS = 1024, 4096, 4096
MAX_WIDTH, MAX_FFN = 1 << 17, 1 << 20
MAX_VOCAB, MAX_LENGTH = 1 << 24, 1 << 24
PARTIAL = "partial_rotary_factor"


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


def spelled(config: Config, names: Config) -> dict[str, Any]:
    """The config with every value under the family's own key. names: own key -> how others spell it.

    Keys of a `text_config` stand for those outside. Raises InputError where one thing is given twice and not alike.
    """
    inner = config.get("text_config")
    table = _once(config, inner, "text_config") if isinstance(inner, Mapping) else dict(config)
    for own, other in names.items():
        table = _once(table, {own: table.get(other)}, other)
    return table


def _once(config: Config, other: Config, source: str) -> dict[str, Any]:
    """The config with what `other` adds to it; null adds nothing. source: where that comes from, for the error."""
    for key, value in other.items():
        if value is not None and config.get(key) is not None and config[key] != value:
            raise bad(key, f"is {_shown(config[key])}, and {source} says {_shown(value)}")
    return {**other, **{key: value for key, value in config.items() if value is not None or key not in other}}


def rope_theta(config: Config, share: float = 1.0) -> float:
    """The base of the rotary positions: `rope_theta`, or the same inside `rope_parameters` or `rope_scaling`, where
    transformers has kept it since version 5.

    share: of a head's channels, which the family's positions rotate. Raises InputError where two of them differ, and
    for positions that are stretched or rotate another share.
    """
    found = {key: config[key] for key in ("rope_theta",) if config.get(key) is not None}
    for key in ("rope_parameters", "rope_scaling"):
        inner = config.get(key)
        if inner is None:
            continue
        if not isinstance(inner, Mapping):
            raise bad(key, f"must be an object, not {_shown(inner)}")
        kind = inner.get("rope_type", inner.get("type", "default"))
        if kind != "default":
            raise bad(key, f"asks for rotary positions of type {_shown(kind)}; only plain ones (default) are supported")
        strange = [name for name in inner if name not in ("rope_type", "type", "rope_theta", "partial_rotary_factor")]
        if strange:
            raise bad(key, f"holds {_shown(strange[0])}, which plain rotary positions do not have")
        expect({f"{key}.{PARTIAL}": inner.get(PARTIAL)}, f"{key}.{PARTIAL}", share)
        if inner.get("rope_theta") is not None:
            found[f"{key}.rope_theta"] = inner["rope_theta"]
    expect(config, PARTIAL, share)
    values = {key: real(found, key, 1, 1e12) for key in found} or {"rope_theta": real(config, "rope_theta", 1, 1e12)}
    (first, theta), *others = values.items()
    for key, value in others:
        if value != theta:
            raise bad(key, f"is {value:g}, and {first} is {theta:g}")
    return theta


def special_tokens(config: Config, vocab: int) -> dict[str, Any]:
    """mask_token, eos_token, other_ends and pad_token of a `DecoderShape`.

    The mask token must be neither an end of text nor padding; these two may be one.
    """
    mask = integer(config, "mask_token_id", 0, vocab - 1)
    eos, *others = end_tokens(config, vocab)
    pad = integer(config, "pad_token_id", 0, vocab - 1)
    for key, tokens in (("eos_token_id", (eos, *others)), ("pad_token_id", (pad,))):
        if mask in tokens:
            raise bad("mask_token_id", f"is {mask}, and so is {key}; a mask must be a token of its own")
    return {"mask_token": mask, "eos_token": eos, "other_ends": tuple(others), "pad_token": pad}


def end_tokens(config: Config, vocab: int) -> tuple[int, ...]:
    """Every token that ends a text: `eos_token_id`, one or a list."""
    listed = config.get("eos_token_id")
    ends = listed if isinstance(listed, list) and listed else [listed]
    return tuple(integer({"eos_token_id": one}, "eos_token_id", 0, vocab - 1) for one in ends)


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
