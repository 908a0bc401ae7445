"""Published models by their hub ids: what their config.json says, for plans where they are not here. No torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

FILE = Path(__file__).with_name("known.json")


@cache
def known_models() -> Mapping[str, Mapping[str, Any]]:
    """Hub id -> the keys of its config.json that a family reads."""
    found = json.loads(FILE.read_text(encoding="utf-8"))
    return MappingProxyType({name: one["config"] for one in found for name in one["models"]})
