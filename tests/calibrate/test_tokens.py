"""Masked calibration tokens: windows, ratios, seeds."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from qspec.calibrate.tokens import calibration_tokens, positions_below
from qspec.errors import InputError
from qspec.language.spec import Calibration, MaskDistribution

MASK = 999


class Letters:
    """One token a character."""

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        assert not add_special_tokens
        return [ord(c) for c in text]


def draw(
    mask: MaskDistribution, samples: int = 64, seed: int = 0, length: int = 50
) -> tuple[torch.Tensor, torch.Tensor]:
    wanted = Calibration(samples=samples, mask=mask, seed=seed)
    tokens = calibration_tokens(["abcdefghij" * 20, "klmnopqrst" * 20], Letters(), wanted, length, MASK)
    return tokens.ids, tokens.ratio


def test_clean_windows_are_stretches_of_the_text() -> None:
    ids, ratio = draw(MaskDistribution("none"))
    assert ids.shape == (64, 50)
    assert (ratio == 0).all()
    text = "abcdefghij" * 20 + "klmnopqrst" * 20
    assert all("".join(map(chr, row)) in text for row in ids.tolist())
    assert len({tuple(row) for row in ids.tolist()}) > 10


def test_share_of_masks_follows_the_ratio() -> None:
    ids, ratio = draw(MaskDistribution("uniform", 0.2, 0.8), samples=400)
    assert 0.2 <= float(ratio.min()) < 0.25
    assert 0.75 < float(ratio.max()) <= 0.8
    share = (ids == MASK).float().mean(1)
    # a sample's share has variance r (1 - r) / length: five standard deviations for every one of them
    assert ((share - ratio).abs() < 5 * (ratio * (1 - ratio) / 50).sqrt()).all()
    assert abs(float(share.mean() - ratio.mean())) < 0.02


def test_fixed_ratio_masks_all_or_nothing_at_its_ends() -> None:
    assert (draw(MaskDistribution("fixed", 1.0, 1.0))[0] == MASK).all()
    assert (draw(MaskDistribution("fixed", 0.0, 0.0))[0] != MASK).all()


def test_masked_positions_are_told_apart_and_all_count_alike() -> None:
    wanted = Calibration(samples=8, mask=MaskDistribution("fixed", 0.5, 0.5))
    tokens = calibration_tokens(["abcdefghij" * 20], Letters(), wanted, 50, MASK)
    assert torch.equal(tokens.masked, tokens.ids == MASK)
    assert (tokens.weight == torch.ones(8, 50)).all()


def test_the_hash_covers_tokens_and_weights() -> None:
    wanted = Calibration(samples=8)
    tokens = calibration_tokens(["abcdefghij" * 20], Letters(), wanted, 50, MASK)
    others = [replace(tokens, weight=tokens.weight * 0.5), replace(tokens, ids=tokens.ids + 1)]
    assert len({tokens.sha256, *(other.sha256 for other in others)}) == 3
    assert replace(tokens, ratio=tokens.ratio.clone()).sha256 == tokens.sha256


def test_seed_decides() -> None:
    mask = MaskDistribution()
    assert torch.equal(draw(mask, seed=3)[0], draw(mask, seed=3)[0])
    assert not torch.equal(draw(mask, seed=3)[0], draw(mask, seed=4)[0])


def test_short_text_is_refused() -> None:
    with pytest.raises(InputError, match="has 400 tokens, fewer than one sample of 401"):
        draw(MaskDistribution(), length=401)


def test_the_same_draws_give_nested_masks() -> None:
    draw = torch.tensor([[0.0, 0.3, 0.5, 0.99], [0.7, 0.2, 0.9, 0.4]])
    low, high = (positions_below(torch.full((2,), ratio), draw) for ratio in (0.4, 0.75))
    assert low.tolist() == [[True, True, False, False], [False, True, False, False]]
    assert high.tolist() == [[True, True, True, False], [True, True, False, True]]
    assert not positions_below(torch.zeros(2), draw).any()
    assert positions_below(torch.ones(2), draw).all()
    assert positions_below(torch.tensor([0.0, 1.0]), draw).tolist() == [[False] * 4, [True] * 4]
