"""Outlier statistics and pictures by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from qspec.calibrate.outliers import (
    PICTURE_COLUMNS,
    PICTURE_ROWS,
    describe,
    largest_tokens,
    picture,
    watching,
)

SITE = "blocks[1].mlp.gated"


def test_statistics_by_hand() -> None:
    x = torch.tensor([[1.0, 2.0, 3.0, 0.0, 40.0], [2.0, 1.0, 0.0, 4.0, 2.0], [0.0, 0.0, 1.0, 1.0, 18.0]])
    found = describe(SITE, x)
    # peaks 2, 2, 3, 4, 40; their median 3; threshold 15
    assert (found.peak, found.median, found.ratio) == (40.0, 3.0, pytest.approx(40 / 3))
    assert (found.tokens, found.channels, found.outlier_channels) == (3, 5, 1)
    assert (found.spanning_tokens, found.tokens_spanned) == (2, pytest.approx(2 / 3))
    # 0 0 0 0 1 1 1 [1] 2 2 2 3 4 18 40; squares: 4 of 1, 3 of 4, 9, 16, 324, 1600
    assert (found.typical, found.times_typical) == (1.0, 40.0)
    assert found.crest == pytest.approx(40 / math.sqrt(1965 / 15))
    assert found.kind == "normal"
    assert [(top.channel, top.peak) for top in found.top] == [(4, 40.0), (3, 4.0), (2, 3.0), (0, 2.0)]
    assert found.top[0].mean == pytest.approx(20.0)
    assert largest_tokens(x, found, 8) == [(0, 40.0), (2, 18.0)]
    assert largest_tokens(x, found, 1) == [(0, 40.0)]


def spiked(size: float, tokens: int = 1) -> torch.Tensor:
    x = torch.ones(4, 9)
    x[:tokens, 7] = size
    return x


@pytest.mark.parametrize(
    ("size", "kind"),
    [(1.0, "none"), (4.99, "none"), (5.0, "normal"), (316.0, "normal"), (317.0, "massive"), (1e5, "massive")],
)
@pytest.mark.parametrize("tokens", [1, 4])
@pytest.mark.parametrize("site", ["blocks[0].mlp.gated", "blocks[0].attention.input"])
def test_size_alone_decides_the_kind(size: float, kind: str, tokens: int, site: str) -> None:
    found = describe(site, spiked(size, tokens))
    assert found.kind == kind
    assert found.spanning_tokens == (tokens if kind != "none" else 0)
    assert found.outlier_channels == (1 if kind != "none" else 0)
    assert len(largest_tokens(spiked(size, tokens), found, 8)) == found.spanning_tokens


def test_the_scale_of_an_input_does_not_matter() -> None:
    one, other = describe(SITE, spiked(50.0)), describe(SITE, 1e-3 * spiked(50.0))
    assert (one.kind, one.outlier_channels, one.spanning_tokens) == (other.kind, 1, 1)
    assert (one.ratio, one.crest) == pytest.approx((other.ratio, other.crest))


def test_silence_is_no_outlier() -> None:
    found = describe(SITE, torch.zeros(4, 9))
    assert (found.kind, found.ratio, found.times_typical, found.crest) == ("none", 1.0, 1.0, 1.0)
    assert (found.tokens_spanned, found.outlier_channels) == (0.0, 0)


def test_pictures_keep_every_peak() -> None:
    x = torch.rand(200, 1000)
    x[70, 999] = 50.0
    x[199, 0] = 60.0  # beyond the tokens that are drawn
    drawn = picture(SITE, "before", x)
    assert (len(drawn.magnitudes), len(drawn.magnitudes[0])) == (PICTURE_ROWS, 125)
    assert (drawn.token_step, drawn.channel_step) == (3, 8)
    assert drawn.magnitudes[70 // 3][999 // 8] == 50.0
    assert max(max(row) for row in drawn.magnitudes) == 50.0
    assert drawn.masked == ()
    small = picture(SITE, "before", torch.tensor([[0.12345, 2.0]]))
    assert small.magnitudes == ((0.123, 2.0),)
    assert len(small.magnitudes[0]) < PICTURE_COLUMNS


def test_pictures_tell_the_masked_share_of_each_row() -> None:
    masked = torch.zeros(80, dtype=torch.bool)
    masked[1] = masked[3] = masked[4] = masked[5] = masked[78] = True
    drawn = picture(SITE, "before", torch.rand(80, 4), masked)
    assert drawn.token_step == 3
    assert len(drawn.masked) == len(drawn.magnitudes) == 27
    assert drawn.masked[:3] == pytest.approx((1 / 3, 1.0, 0.0))
    assert drawn.masked[26] == 0.5  # tokens 78 and 79


def test_watching_ends_with_its_block() -> None:
    linear, seen = nn.Linear(3, 2), []
    with watching({"a": [linear]}, lambda site, x: seen.append((site, tuple(x.shape)))):
        linear(torch.ones(4, 3))
    linear(torch.ones(5, 3))
    assert seen == [("a", (4, 3))]
