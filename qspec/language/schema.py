"""The JSON schema of a resolved recipe, from the same dataclasses that check it. Imports pydantic: not for
`check`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import TypeAdapter

from qspec.language.spec import Pass, Spec


def json_schema(passes: Mapping[str, type[Pass]]) -> dict[str, Any]:
    """`recipe`: the schema of a Spec; `passes`: name -> the schema of its parameters."""
    return {
        "recipe": TypeAdapter(Spec).json_schema(),
        "passes": {name: TypeAdapter(cls).json_schema() for name, cls in sorted(passes.items())},
    }
