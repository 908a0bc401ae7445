"""The families that qspec knows, and which one a config belongs to. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from qspec.errors import InputError
from qspec.models.diffusion_gemma import DIFFUSION_GEMMA
from qspec.models.dream import DREAM
from qspec.models.family import Family
from qspec.models.fast_dllm import FAST_DLLM
from qspec.models.llada import LLADA
from qspec.models.llada2 import LLADA2
from qspec.models.llada_moe import LLADA_MOE
from qspec.models.sdar import SDAR
from qspec.models.sdar_moe import SDAR_MOE

KNOWN = (LLADA, DREAM, SDAR, FAST_DLLM, LLADA_MOE, SDAR_MOE, LLADA2, DIFFUSION_GEMMA)
FAMILIES: Mapping[str, Family] = MappingProxyType({family.name: family for family in KNOWN})


def family_of(config: Mapping[str, Any]) -> Family:
    """The family whose layout a config.json describes; InputError where none or several recognise it."""
    found = [family for family in FAMILIES.values() if family.recognises(config)]
    if len(found) == 1:
        return found[0]
    names = ", ".join(family.name for family in (found or FAMILIES.values()))
    if found:
        what = f"config.json fits several model families: {names}"
        raise InputError(what, where="config.json: architectures")
    raise InputError(
        f"no model family recognises this config (architectures {_shown(config.get('architectures'))}, "
        f"model_type {_shown(config.get('model_type'))})",
        where="config.json: architectures",
        hint=f"known families: {names}; use a checkpoint of one of them in its published layout",
    )


def _shown(value: object) -> str:
    text = "missing" if value is None else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
