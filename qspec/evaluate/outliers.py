"""Activation outliers of two models, before quantization and at what is quantized in the end.

What an outlier is: `qspec.calibrate.outliers`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from qspec.calibrate.outliers import (
    Picture,
    SiteOutliers,
    Stage,
    describe,
    magnitudes_of,
    picture,
    readers,
    watching,
)
from qspec.models.decoder import Decoder


@dataclass(frozen=True)
class OutlierReport:
    """before: the unquantized model's inputs. after: what is quantized, every transform applied.
    pictures: pairs.
    """

    before: tuple[SiteOutliers, ...]
    after: tuple[SiteOutliers, ...]
    pictures: tuple[Picture, ...]


def collect(decoder: Decoder, ids: Tensor, stage: Stage) -> dict[str, tuple[SiteOutliers, Picture]]:
    """Table row and picture of every site of a decoder, for masked ids [b, t]; online transforms applied."""
    outliers: dict[str, tuple[SiteOutliers, Picture]] = {}
    seen: dict[str, list[Tensor]] = {}  # of one block: experts show theirs one after the other

    def describe_all() -> None:
        for site, parts in seen.items():
            magnitudes = parts[0] if len(parts) == 1 else torch.cat(parts)
            outliers[site] = describe(site, magnitudes), picture(site, stage, magnitudes)
        seen.clear()

    def observe(site: str, x: Tensor) -> None:
        if any(site.partition(".")[0] != other.partition(".")[0] for other in seen):
            describe_all()
        seen.setdefault(site, []).append(magnitudes_of(x))

    roles = readers(decoder.family.modules(decoder.shape))
    linears = {site: [decoder.module(role) for role in own] for site, own in roles.items()}
    with torch.no_grad(), one_by_one(decoder), watching(linears, observe):
        ids = ids.to(decoder.device)
        decoder.rows_through(ids, decoder.calibration_context(ids))
    describe_all()
    return outliers


@contextmanager
def one_by_one(decoder: Decoder) -> Iterator[None]:
    """While it lasts, experts are computed by their own linears, which can be watched."""
    held = [block.grouped for block in decoder.blocks]
    try:
        for block in decoder.blocks:
            block.grouped = None
        yield
    finally:
        for block, grouped in zip(decoder.blocks, held, strict=True):
            block.grouped = grouped


def compare(baseline: Decoder, quantized: Decoder, ids: Tensor) -> OutlierReport:
    """Both tables for calibration rows ids [b, t]; pictures of the largest outlier of each kind."""
    before, after = collect(baseline, ids, "before"), collect(quantized, ids, "after")
    pictures: list[Picture] = []
    for kind in ("normal", "massive"):
        rows = [row for row, _ in before.values() if row.kind == kind]
        if rows:
            site = max(rows, key=lambda row: row.crest).site  # rounding noise follows the crest factor
            pictures += [before[site][1], after[site][1]]
    tables = [tuple(row for row, _ in views.values()) for views in (before, after)]
    return OutlierReport(tables[0], tables[1], tuple(pictures))
