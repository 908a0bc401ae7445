"""Activation outliers at the inputs of the linears, before quantization and at what is quantized in the end.

Two kinds (arXiv 2508.14896, section 3): *normal* outliers are large in a channel over all tokens, at the
inputs of q, o and gate; *massive* ones are far larger, in very few channels, at the input of the FFN's
down-projection, where in a diffusion LLM they stand on more tokens than in an autoregressive one. With m_j
the largest |x_j| of channel j over all tokens:

    ratio = max_j m_j / median_j m_j;   an outlier channel has m_j >= 5 median_j m_j;   its tokens: |x_j| >=
    5 median_j m_j
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import Tensor, nn

from qspec.models.decoder import Decoder
from qspec.transforms import InputTransform

OUTLIER_RATIO = 5.0
TOP_CHANNELS = 4
PICTURED_TOKENS = 96
PICTURE_ROWS = 32
PICTURE_COLUMNS = 128
MASSIVE_SITES = ("mlp.gated",)

Kind = Literal["none", "normal", "massive"]
Stage = Literal["before", "after"]


@dataclass(frozen=True)
class ChannelPeak:
    channel: int
    peak: float
    mean: float


@dataclass(frozen=True)
class SiteOutliers:
    """The magnitudes of one input, over `tokens` tokens and `channels` channels.

    peak: the largest |x|. median: the median channel's largest |x|. ratio: peak / median. outlier_channels:
    how many channels reach five times the median. tokens_spanned: share of tokens at which the top channel
    does. top: the channels with the largest peaks, with their mean |x|.
    """

    site: str
    kind: Kind
    tokens: int
    channels: int
    peak: float
    median: float
    ratio: float
    outlier_channels: int
    tokens_spanned: float
    top: tuple[ChannelPeak, ...]


@dataclass(frozen=True)
class Picture:
    """|x| of one site for the figure: rows are tokens, columns channels, each the largest of the cell that
    it stands for.

    channel_step: channels in one column; token_step: tokens in one row.
    """

    site: str
    stage: Stage
    magnitudes: tuple[tuple[float, ...], ...]
    token_step: int
    channel_step: int


@dataclass(frozen=True)
class OutlierReport:
    """before: the unquantized model's inputs. after: what is quantized, every transform applied.
    pictures: pairs.
    """

    before: tuple[SiteOutliers, ...]
    after: tuple[SiteOutliers, ...]
    pictures: tuple[Picture, ...]


def describe(site: str, magnitudes: Tensor) -> SiteOutliers:
    """The statistics of |x| [tokens, channels]; site: `blocks[3].mlp.gated`."""
    peaks = magnitudes.amax(0)
    median = float(peaks.median())
    threshold = OUTLIER_RATIO * median
    order = peaks.argsort(descending=True, stable=True)[:TOP_CHANNELS].tolist()
    peak = float(peaks.max())
    ratio = peak / median if median > 0 else 1.0
    return SiteOutliers(
        site=site,
        kind=_kind(site, ratio),
        tokens=magnitudes.shape[0],
        channels=magnitudes.shape[1],
        peak=peak,
        median=median,
        ratio=ratio,
        outlier_channels=int((peaks >= threshold).sum()) if ratio >= OUTLIER_RATIO else 0,
        tokens_spanned=float((magnitudes[:, order[0]] >= threshold).double().mean()),
        top=tuple(ChannelPeak(j, float(peaks[j]), float(magnitudes[:, j].mean())) for j in order),
    )


def _kind(site: str, ratio: float) -> Kind:
    if ratio < OUTLIER_RATIO:
        return "none"
    return "massive" if site.endswith(MASSIVE_SITES) else "normal"


def picture(site: str, stage: Stage, magnitudes: Tensor) -> Picture:
    """|x| of the first tokens, the largest of each cell, so small that it can be drawn."""
    rows = magnitudes[:PICTURED_TOKENS]
    token_step = -(-rows.shape[0] // PICTURE_ROWS)
    channel_step = -(-rows.shape[1] // PICTURE_COLUMNS)
    pooled = nn.functional.max_pool2d(rows[None], (token_step, channel_step), ceil_mode=True)[0]
    values = tuple(tuple(float(f"{value:.3g}") for value in row) for row in pooled.tolist())
    return Picture(site, stage, values, token_step, channel_step)


def collect(decoder: Decoder, ids: Tensor, stage: Stage) -> dict[str, tuple[SiteOutliers, Picture]]:
    """Table row and picture of every site of a decoder, for masked ids [b, t]; online transforms applied.

    One linear stands for its site: those of one site see the same input, and the same transform if any.
    """
    found: dict[str, tuple[SiteOutliers, Picture]] = {}
    with torch.no_grad(), _watched(decoder, stage, found):
        decoder.hidden(ids.to(decoder.device))
    return found


def compare(baseline: Decoder, quantized: Decoder, ids: Tensor) -> OutlierReport:
    """Both tables for masked calibration tokens ids [b, t]; pictures of the largest outlier of each kind."""
    before, after = collect(baseline, ids, "before"), collect(quantized, ids, "after")
    pictures: list[Picture] = []
    for kind in ("normal", "massive"):
        rows = [row for row, _ in before.values() if row.kind == kind]
        if rows:
            site = max(rows, key=lambda row: row.ratio).site
            pictures += [before[site][1], after[site][1]]
    tables = [tuple(row for row, _ in views.values()) for views in (before, after)]
    return OutlierReport(tables[0], tables[1], tuple(pictures))


@contextmanager
def _watched(decoder: Decoder, stage: Stage, found: dict[str, tuple[SiteOutliers, Picture]]) -> Iterator[None]:
    """While it lasts, what every site sees is described in `found`."""

    def observer(site: str) -> Callable[[Tensor], None]:
        def observe(x: Tensor) -> None:
            magnitudes = x.detach().reshape(-1, x.shape[-1]).abs().float()
            found[site] = describe(site, magnitudes), picture(site, stage, magnitudes)

        return observe

    undo: list[Callable[[], None]] = []
    watched: set[str] = set()
    try:
        for entry in decoder.family.modules(decoder.shape):
            if entry.role.block is not None and entry.site not in watched:
                watched.add(entry.site)
                undo.append(_watch(decoder.module(entry.role), observer(entry.site)))
        yield
    finally:
        for restore in undo:
            restore()


def _watch(linear: nn.Module, observe: Callable[[Tensor], None]) -> Callable[[], None]:
    """Shows `observe` each input of a linear; returns what ends it.

    A quantized linear is entered through `prepare`, not through `forward`, where linears share an input.
    """
    if not hasattr(linear, "prepare"):
        handle = linear.register_forward_pre_hook(lambda _, arguments: observe(arguments[0]))
        return handle.remove
    prepare = cast(Callable[[Tensor], object], linear.prepare)
    transform = cast("InputTransform | None", linear.transform)

    def watched(x: Tensor) -> object:
        observe(x if transform is None else transform.to(x.device).apply(x))
        return prepare(x)

    linear.prepare = watched  # type: ignore[assignment]
    return lambda: delattr(linear, "prepare")
