"""Activation outliers at the inputs of the linears, before quantization and at what is quantized in the end.

Two kinds (arXiv 2508.14896, section 3): *normal* outliers are large in a channel over all tokens, at the
inputs of q, o and gate; *massive* ones are far larger, in very few channels, at the input of the FFN's
down-projection, where in a diffusion LLM they stand on more tokens than in an autoregressive one. With m_j
the largest |x_j| of channel j over all tokens:

    ratio = max_j m_j / median_j m_j;   an outlier channel has m_j >= 5 median_j m_j;   its tokens: |x_j| >=
    5 median_j m_j
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal, cast

import torch
from torch import Tensor, nn

from qspec.models.decoder import Decoder
from qspec.transforms import InputTransform

OUTLIER_RATIO = 5.0
TOP_CHANNELS = 4
PICTURE_TOKENS = 40
PICTURE_CHANNELS = 128
MASSIVE_SITES = ("mlp.gated",)

Kind = Literal["none", "normal", "massive"]
Matrix = tuple[tuple[float, ...], ...]


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
    stage: Literal["before", "after"]
    magnitudes: Matrix
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


@dataclass
class SiteInputs:
    """Collects what one site sees: x [tokens, channels] as often as it comes."""

    chunks: list[Tensor] = field(default_factory=list)

    def add(self, x: Tensor) -> None:
        self.chunks.append(x.detach().reshape(-1, x.shape[-1]).abs().float().cpu())

    @property
    def magnitudes(self) -> Tensor:
        """|x|, float32 [tokens, channels]."""
        return torch.cat(self.chunks)


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


def picture(site: str, stage: Literal["before", "after"], magnitudes: Tensor) -> Picture:
    """|x| of the first tokens, largest of each cell, so small that it can be drawn."""
    rows = magnitudes[: PICTURE_TOKENS * max(1, min(magnitudes.shape[0], 128) // PICTURE_TOKENS)]
    token_step = -(-rows.shape[0] // PICTURE_TOKENS)
    channel_step = -(-rows.shape[1] // PICTURE_CHANNELS)
    pooled = nn.functional.max_pool2d(rows[None], (token_step, channel_step), ceil_mode=True)[0]
    values = tuple(tuple(float(f"{value:.3g}") for value in row) for row in pooled.tolist())
    return Picture(site, stage, values, token_step, channel_step)


def collect(decoder: Decoder, ids: Sequence[Tensor]) -> dict[str, Tensor]:
    """|x| [tokens, channels] of every site of a decoder, for masked ids [b, t]; transforms of quantized
    linears applied.

    One linear stands for its site: those of one site see the same input, and the same transform if they
    have one.
    """
    inputs: dict[str, SiteInputs] = {}
    with torch.no_grad(), _watched(decoder, inputs):
        for batch in ids:
            decoder.hidden(batch)
    return {site: seen.magnitudes for site, seen in inputs.items()}


def compare(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> OutlierReport:
    """Both tables, and pictures of the sites with the largest ratio of either kind."""
    table = tuple(describe(site, x) for site, x in before.items())
    pictures = []
    for kind in ("normal", "massive"):
        sites = [row for row in table if row.kind == kind and row.site in after]
        if sites:
            site = max(sites, key=lambda row: row.ratio).site
            pictures += [picture(site, "before", before[site]), picture(site, "after", after[site])]
    return OutlierReport(table, tuple(describe(site, x) for site, x in after.items()), tuple(pictures))


@contextmanager
def _watched(decoder: Decoder, inputs: dict[str, SiteInputs]) -> Iterator[None]:
    """While it lasts, every site's input goes into `inputs`."""
    undo: list[Callable[[], None]] = []
    try:
        for entry in decoder.family.modules(decoder.shape):
            if entry.role.block is not None and entry.site not in inputs:
                inputs[entry.site] = SiteInputs()
                undo.append(_watch(decoder.module(entry.role), inputs[entry.site].add))
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
        observe(x if transform is None else transform.apply(x))
        return prepare(x)

    linear.prepare = watched  # type: ignore[assignment]
    return lambda: delattr(linear, "prepare")
