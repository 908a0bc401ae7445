"""The work of a search, cut into pieces that know nothing of each other: what workers are given, and what is kept."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import isfinite
from typing import Any, TypeAlias

from qspec.search.losses import BUCKETS
from qspec.search.space import ProbeTarget


@dataclass(frozen=True)
class Probe:
    """The loss of each target of a block under one scheme, everything else unquantized."""

    block: int
    scheme: str
    targets: tuple[ProbeTarget, ...]


@dataclass(frozen=True)
class Fisher:
    """The same to second order, from gradients."""

    block: int
    scheme: str
    targets: tuple[ProbeTarget, ...]


@dataclass(frozen=True)
class Errors:
    """The relative error of each target's outputs under one scheme."""

    block: int
    scheme: str
    targets: tuple[ProbeTarget, ...]


@dataclass(frozen=True)
class Noise:
    """The loss of noise on each target's weights, over the relative error that it makes of the outputs."""

    block: int
    targets: tuple[ProbeTarget, ...]


@dataclass(frozen=True)
class Trial:
    """The loss of a whole layout, compiled. schemes: role -> name of its scheme, None where it is kept."""

    schemes: tuple[tuple[str, str | None], ...]


Job: TypeAlias = Probe | Fisher | Errors | Noise | Trial
Result: TypeAlias = dict[str, Any]  # plain JSON values


def fits(job: Job, result: Any, rows: int) -> bool:
    """Whether these JSON values are a result of the job, with finite numbers. rows: those of a trial."""
    match job:
        case Trial():
            each = result.get("rows") if isinstance(result, dict) else None
            return _loss(result, "rows") and isinstance(each, list) and len(each) == rows and all(map(_number, each))
        case Errors():
            checked = _number
        case _:
            checked = _loss
    named = {str(target) for target in job.targets}
    return isinstance(result, dict) and set(result) == named and all(map(checked, result.values()))


def _loss(value: Any, *more: str) -> bool:
    """Whether it is a `losses.Loss`, with `more` beside it."""
    if not isinstance(value, dict) or set(value) != {"mean", "buckets", *more} or not _number(value["mean"]):
        return False
    buckets = value["buckets"]
    if not isinstance(buckets, list | tuple) or len(buckets) != BUCKETS:
        return False
    return all(bucket is None or _number(bucket) for bucket in buckets)


def _number(value: Any) -> bool:
    return isinstance(value, float) and isfinite(value)


def key_of(job: Job, facts: Mapping[str, Any], schemes: Mapping[str, str]) -> str:
    """The content hash under which a result is kept: of the job, of the schemes that it names, and of all facts.

    facts: whatever else a result depends on. schemes: name -> its formats in full.
    """
    names = [name for _, name in job.schemes] if isinstance(job, Trial) else [getattr(job, "scheme", None)]
    formats = {name: schemes[name] for name in names if name is not None}
    content = {"kind": type(job).__name__, "job": asdict(job), "schemes": formats, "facts": facts}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
