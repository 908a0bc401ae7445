"""THE definition of an activation outlier, of its kind and its measures, and how the inputs of linears are seen.

The paper tells two kinds apart (arXiv 2508.14896, section 3.3, after DuQuant, arXiv 2406.01721, section 2): *normal*
outliers are activations across all tokens with relatively large magnitudes; *massive* ones have significantly larger
values, in autoregressive models at a limited set of tokens, in diffusion LLMs at more of them, and tend to stand at the
input of the FFN's second linear. For the magnitudes |x| [tokens, channels] of one input, m_j the largest of channel j:

    ratio = max_j m_j / median_j m_j          an outlier channel has m_j >= 5 median_j m_j
    tokens spanned: those at which the channel with the largest m_j reaches 5 median_j m_j
    times_typical = max |x| / median |x|      crest = max |x| / sqrt(mean x^2)

Where no channel is an outlier the kind is none; else it is massive from times_typical = 10^2.5 on, and normal below.
"Significantly larger" is put into numbers by arXiv 2402.17762 (section 2), which DuQuant follows: at least or around
1000 times the median magnitude; read here as nearer to 1000 than to 100 on a logarithmic scale. Its second condition,
|x| > 100, is left out: the scale of a linear's input is that of the norm's gain before it. Neither the place nor the
number of tokens decides the kind, so that both are findings.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import Tensor, nn

from qspec.models.family import ModuleEntry, Role
from qspec.models.inputs import LayerInput, value_of
from qspec.transforms import InputTransform

OUTLIER_RATIO = 5.0
MASSIVE_TIMES = 10**2.5
TOP_CHANNELS = 4
PICTURED_TOKENS = 96
PICTURE_ROWS = 32
PICTURE_COLUMNS = 128

Kind = Literal["none", "normal", "massive"]
Stage = Literal["before", "after"]


@dataclass(frozen=True)
class ChannelPeak:
    """A channel's largest |x| and its mean |x|."""

    channel: int
    peak: float
    mean: float


@dataclass(frozen=True)
class SiteOutliers:
    """The magnitudes of one input, over `tokens` tokens and `channels` channels.

    peak: the largest |x|. median: the median channel's largest |x|. ratio: peak / median. typical: the median |x|.
    times_typical: peak / typical. crest: peak / the root of the mean square. outlier_channels: how many channels reach
    five times the median. spanning_tokens, tokens_spanned: number and share of the tokens at which the top channel
    does; 0 where there is no outlier. top: the channels with the largest peaks. A quotient by zero is 1.
    """

    site: str
    kind: Kind
    tokens: int
    channels: int
    peak: float
    median: float
    ratio: float
    typical: float
    times_typical: float
    crest: float
    outlier_channels: int
    spanning_tokens: int
    tokens_spanned: float
    top: tuple[ChannelPeak, ...]


@dataclass(frozen=True)
class Picture:
    """|x| of one site for the figure: rows are tokens, columns channels, each the largest of the cell that
    it stands for.

    channel_step: channels in one column; token_step: tokens in one row. masked: share of each row's tokens that are
    masked; empty where that is not told.
    """

    site: str
    stage: Stage
    magnitudes: tuple[tuple[float, ...], ...]
    token_step: int
    channel_step: int
    masked: tuple[float, ...] = ()


def describe(site: str, magnitudes: Tensor) -> SiteOutliers:
    """The statistics of |x| [tokens, channels], at least one of each; site: `blocks[3].mlp.gated`."""
    peaks = magnitudes.amax(0)
    order = peaks.argsort(descending=True, stable=True)[:TOP_CHANNELS].tolist()
    peak, median, typical = float(peaks.max()), float(peaks.median()), float(magnitudes.median())
    rms = float(magnitudes.square().mean(dtype=torch.float64).sqrt())
    ratio, times_typical = _quotient(peak, median), _quotient(peak, typical)
    outlying = ratio >= OUTLIER_RATIO
    spanning = int(_spanning(magnitudes, order[0], median).sum()) if outlying else 0
    return SiteOutliers(
        site=site,
        kind=("massive" if times_typical >= MASSIVE_TIMES else "normal") if outlying else "none",
        tokens=magnitudes.shape[0],
        channels=magnitudes.shape[1],
        peak=peak,
        median=median,
        ratio=ratio,
        typical=typical,
        times_typical=times_typical,
        crest=_quotient(peak, rms),
        outlier_channels=int((peaks >= OUTLIER_RATIO * median).sum()) if outlying else 0,
        spanning_tokens=spanning,
        tokens_spanned=spanning / magnitudes.shape[0],
        top=tuple(ChannelPeak(j, float(peaks[j]), float(magnitudes[:, j].mean())) for j in order),
    )


def largest_tokens(magnitudes: Tensor, outliers: SiteOutliers, most: int) -> list[tuple[int, float]]:
    """(row, |x|) of the tokens that the top channel's outlier spans, the largest first, at most `most`."""
    if outliers.kind == "none":
        return []
    channel = outliers.top[0].channel
    rows = _spanning(magnitudes, channel, outliers.median).nonzero()[:, 0]
    order = magnitudes[rows, channel].argsort(descending=True, stable=True)[:most]
    return [(int(row), float(magnitudes[row, channel])) for row in rows[order]]


def _spanning(magnitudes: Tensor, channel: int, median: float) -> Tensor:
    """bool [tokens]: where a channel reaches the threshold."""
    return magnitudes[:, channel] >= OUTLIER_RATIO * median


def _quotient(peak: float, of: float) -> float:
    return peak / of if of > 0 else 1.0


def picture(site: str, stage: Stage, magnitudes: Tensor, masked: Tensor | None = None) -> Picture:
    """|x| of the first tokens, the largest of each cell, so small that it can be drawn. masked: bool [tokens]."""
    rows = magnitudes[:PICTURED_TOKENS]
    token_step = -(-rows.shape[0] // PICTURE_ROWS)
    channel_step = -(-rows.shape[1] // PICTURE_COLUMNS)
    pooled = nn.functional.max_pool2d(rows[None], (token_step, channel_step), ceil_mode=True)[0]
    values = tuple(tuple(float(f"{value:.3g}") for value in row) for row in pooled.tolist())
    shares = () if masked is None else torch.split(masked[: rows.shape[0]].double(), token_step)
    return Picture(site, stage, values, token_step, channel_step, tuple(float(share.mean()) for share in shares))


def readers(entries: Iterable[ModuleEntry]) -> dict[str, list[Role]]:
    """Stage -> the linears that stand for it, in forward order: those of one site see the same input, and the same
    online transform if any. One that sees all tokens; where only experts read it, one of each. A router stands for
    nothing: it reads no transform."""
    alike: dict[str, list[ModuleEntry]] = {}
    for entry in entries:
        if not entry.only_kept:
            alike.setdefault(entry.stage, []).append(entry)
    found = {}
    for stage, own in alike.items():
        whole = [entry.role for entry in own if entry.role.expert is None]
        found[stage] = whole[:1] or list({entry.role.expert: entry.role for entry in reversed(own)}.values())[::-1]
    return found


@contextmanager
def watching(linears: Mapping[str, Iterable[nn.Module]], observe: Callable[[str, Tensor], None]) -> Iterator[None]:
    """While it lasts, `observe(site, x)` sees every input of the linears, site -> linears, as it is multiplied."""
    undo: list[Callable[[], None]] = []
    try:
        for site, own in linears.items():
            undo += [_watch(linear, lambda x, site=site: observe(site, x)) for linear in own]  # type: ignore[misc]
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
    prepare = cast(Callable[[LayerInput], object], linear.prepare)
    transform = cast("InputTransform | None", linear.transform)

    def watched(given: LayerInput) -> object:
        x = value_of(given)
        observe(x if transform is None else transform.to(x.device).apply(x))
        return prepare(given)

    linear.prepare = watched  # type: ignore[assignment]
    return lambda: delattr(linear, "prepare")


def magnitudes_of(x: Tensor) -> Tensor:
    """|x| in float32, [tokens, channels], of an input [..., channels]."""
    return x.detach().reshape(-1, x.shape[-1]).abs().float()
