"""Calibration rows of a recipe's block: masks, weights, what needs the model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import pytest
import torch

from qspec.calibrate.certainty import certainty
from qspec.calibrate.rows import calibration_rows
from qspec.calibrate.tokens import CalibrationTokens
from qspec.errors import InputError
from qspec.language.spec import Calibration, MaskDistribution, Rollouts, Weighting
from qspec.models.llada import LLADA
from tests.calibrate.models import MASK, Letters, Remembers
from tests.models.layout import TINY

TEXTS = ["abcdefghij" * 20, "klmnopqrst" * 20]


def never() -> Remembers:
    raise AssertionError("the model is not needed")


def rows(load: Callable[[], Remembers] = never, **wanted: object) -> CalibrationTokens:
    settings: dict[str, object] = {"samples": 64, "length": 50, **wanted}
    return calibration_rows(TEXTS, Letters(), Calibration(**settings), LLADA.shape(TINY), load)  # type: ignore[arg-type]


def test_clean_windows_are_stretches_of_the_text() -> None:
    tokens = rows(mask=MaskDistribution("none", 0.0, 0.0))
    assert tokens.ids.shape == (64, 50)
    assert (tokens.ratio == 0).all()
    text = Letters().encode("".join(TEXTS), add_special_tokens=False)
    stretches = {tuple(text[i : i + 50]) for i in range(len(text) - 49)}
    found = [tuple(row) for row in tokens.ids.tolist()]
    assert set(found) <= stretches
    assert len(set(found)) > 10
    assert not tokens.masked.any()


def test_share_of_masks_follows_the_ratio() -> None:
    tokens = rows(mask=MaskDistribution("uniform", 0.2, 0.8), samples=400)
    assert 0.2 <= float(tokens.ratio.min()) < 0.25
    assert 0.75 < float(tokens.ratio.max()) <= 0.8
    share = (tokens.ids == MASK).float().mean(1)
    # a sample's share has variance r (1 - r) / length: five standard deviations for every one of them
    assert ((share - tokens.ratio).abs() < 5 * (tokens.ratio * (1 - tokens.ratio) / 50).sqrt()).all()
    assert abs(float(share.mean() - tokens.ratio.mean())) < 0.02


def test_fixed_ratio_masks_all_or_nothing_at_its_ends() -> None:
    assert (rows(mask=MaskDistribution("fixed", 1.0, 1.0)).ids == MASK).all()
    assert (rows(mask=MaskDistribution("fixed", 0.0, 0.0)).ids != MASK).all()


def test_the_grids_shares_are_evenly_spaced_over_all_rows() -> None:
    """3 samples x 2 draws: shares 1/12, 3/12, .. 11/12 of 48 tokens, a low and a high one for every sample."""
    tokens = rows(mask=MaskDistribution("grid", 0.0, 1.0), samples=3, draws=2, length=48)
    counts = tokens.masked.sum(1).tolist()
    assert sorted(counts) == [4, 12, 20, 28, 36, 44]
    assert sorted(counts[0::2]) == [4, 12, 20]
    assert [high - low for low, high in zip(counts[0::2], counts[1::2], strict=True)] == [24, 24, 24]
    assert tokens.ratio.tolist() == pytest.approx([count / 48 for count in counts])
    other = rows(mask=MaskDistribution("grid", 0.5, 1.0), samples=4, length=40)  # 9/16, 11/16, 13/16, 15/16
    assert sorted(other.masked.sum(1).tolist()) == [22, 28, 32, 38]


def test_which_tokens_the_grid_masks_is_random() -> None:
    tokens = rows(mask=MaskDistribution("grid", 0.5, 0.5), samples=200)
    assert (tokens.masked.sum(1) == 25).all()
    often = tokens.masked.float().mean(0)
    assert ((often - 0.5).abs() < 5 * (0.25 / 200) ** 0.5).all()


def test_a_prefix_stays_visible() -> None:
    """All tokens after the prefix are masked here, so the first mask tells its length: uniform on 0 .. 49."""
    tokens = rows(mask=MaskDistribution("prefix", 1.0, 1.0), samples=1000)
    lengths = 50 - tokens.masked.sum(1)
    for row, length in zip(tokens.masked, lengths.tolist(), strict=True):
        assert not row[:length].any()
        assert row[length:].all()
    assert (int(lengths.min()), int(lengths.max())) == (0, 49)
    assert abs(float(lengths.float().mean()) - 24.5) < 5 * (50**2 / 12 / 1000) ** 0.5


def test_behind_the_prefix_the_share_is_the_rows_own() -> None:
    """The expected share of masks is t times the mean share behind a prefix, (50 + 1) / 2 / 50 = 0.51."""
    tokens = rows(mask=MaskDistribution("prefix", 0.6, 0.6), samples=2000)
    assert float(tokens.masked.float().mean()) == pytest.approx(0.6 * 0.51, abs=0.02)
    often = tokens.masked.float().mean(0)  # position i is behind the prefix with probability (i + 1) / 50
    assert ((often - 0.6 * (torch.arange(50) + 1) / 50).abs() < 0.06).all()


def test_draws_are_masked_versions_of_one_sample() -> None:
    tokens = rows(samples=5, draws=3)
    assert tokens.ids.shape == (15, 50)
    for first in range(0, 15, 3):
        group, masked = tokens.ids[first : first + 3], tokens.masked[first : first + 3]
        assert len({tuple(row) for row in masked.tolist()}) == 3
        for column in range(50):
            assert len(set(group[:, column][~masked[:, column]].tolist())) <= 1


def test_masked_positions_are_told_apart() -> None:
    tokens = rows(mask=MaskDistribution("fixed", 0.5, 0.5))
    assert torch.equal(tokens.masked, tokens.ids == MASK)
    assert (tokens.weight == torch.ones(64, 50)).all()


def test_weights_by_state() -> None:
    tokens = rows(weigh=Weighting(2.0, 0.25))
    assert (tokens.weight[tokens.masked] == 2.0).all()
    assert (tokens.weight[~tokens.masked] == 0.25).all()
    assert tokens.weight.dtype == torch.float32


def test_certainty_multiplies_the_masked_tokens_weight() -> None:
    tokens = rows(Remembers, samples=4, weigh=Weighting(2.0, 0.25, certainty=True))
    sure = certainty(Remembers(), tokens.ids, tokens.masked)
    assert torch.equal(tokens.weight[tokens.masked], 2 * sure[tokens.masked])
    assert (tokens.weight[~tokens.masked] == 0.25).all()


def test_rollouts_bring_their_own_masks() -> None:
    model = Remembers()
    text = Rollouts(prompt=10, steps=8, buckets=4)
    wanted: dict[str, object] = {"text": text, "mask": None, "samples": 4, "draws": 2, "length": 42}
    tokens = rows(lambda: model, **wanted)
    assert tokens.ids.shape == (8, 42)
    assert torch.equal(tokens.masked, tokens.ids == MASK)
    assert {tuple(row) for row in tokens.ids.tolist()} <= set(model.seen)
    assert tokens.ratio.tolist() == pytest.approx(tokens.masked[:, 10:].float().mean(1).tolist())
    assert tokens.sha256 == rows(Remembers, **wanted).sha256
    assert tokens.sha256 != rows(Remembers, **wanted, seed=1).sha256


class Talks(Letters):
    """Letters with a chat template: u before a user's words, x and a behind them."""

    chat_template = "its text is not looked at"

    def apply_chat_template(self, messages: list[dict[str, str]], **options: bool) -> str:
        assert options == {"tokenize": False, "add_generation_prompt": True}
        ((role, words),) = [tuple(message.values()) for message in messages]
        return f"{role[0]}{words}xa"


@pytest.mark.parametrize("chat", ["auto", "on", "off"])
def test_a_rollouts_prompt_is_a_users_message_where_there_is_a_chat_template(
    chat: Literal["auto", "on", "off"],
) -> None:
    """u before and x, a behind it count among the ten tokens of the prompt; what they enclose is a stretch of text."""
    wanted = Calibration(Rollouts(prompt=10, steps=8, buckets=4, chat=chat), samples=4, length=42, mask=None)
    tokens = calibration_rows(TEXTS, Talks(), wanted, LLADA.shape(TINY), Remembers)
    assert tokens.chat is (chat != "off")
    rows = ["".join(chr(token + ord("a") - 2) for token in row[:10]) for row in tokens.ids.tolist()]
    framed = [row[0] == "u" and row[8:] == "xa" and row[1:8] in "".join(TEXTS) for row in rows]
    assert framed == [chat != "off"] * 4
    assert all(row in "".join(TEXTS) for row in rows) is (chat == "off")


def test_a_chat_template_that_does_not_fit() -> None:
    with pytest.raises(InputError, match="chat is on, and the tokenizer has no chat template"):
        rows(text=Rollouts(prompt=10, steps=8, chat="on"), mask=None)
    shape, small = LLADA.shape(TINY), Calibration(Rollouts(prompt=3, steps=8), samples=1, length=42, mask=None)
    with pytest.raises(InputError, match="the chat template takes 3 tokens, all 3 of a prompt"):
        calibration_rows(TEXTS, Talks(), small, shape, never)


def test_the_hash_covers_tokens_and_weights() -> None:
    tokens = rows(samples=4)
    others = [replace(tokens, weight=tokens.weight * 0.5), replace(tokens, ids=tokens.ids + 1)]
    assert len({tokens.sha256, *(other.sha256 for other in others)}) == 3
    assert replace(tokens, ratio=tokens.ratio.clone()).sha256 == tokens.sha256
    assert rows(samples=4, weigh=Weighting(1.0, 0.5)).sha256 != tokens.sha256


@pytest.mark.parametrize("kind", ["uniform", "grid", "prefix"])
def test_the_seed_decides(kind: str) -> None:
    mask = MaskDistribution(kind)  # type: ignore[arg-type]
    assert torch.equal(rows(mask=mask, seed=3).ids, rows(mask=mask, seed=3).ids)
    assert not torch.equal(rows(mask=mask, seed=3).ids, rows(mask=mask, seed=4).ids)


def test_short_text_is_refused() -> None:
    with pytest.raises(InputError, match="has 400 tokens, fewer than one sample of 401"):
        rows(length=401)


def test_settings_that_a_shorter_model_makes_impossible_are_refused() -> None:
    """The compiler cuts `length` to what a stand-in takes."""
    with pytest.raises(InputError, match="64 steps are more than the 36 tokens to generate"):
        rows(text=Rollouts(prompt=14), mask=None)


def test_tokens_that_all_weigh_nothing_are_refused() -> None:
    with pytest.raises(InputError, match="every calibration token weighs nothing"):
        rows(samples=1, length=8, mask=MaskDistribution("fixed", 1e-6, 1e-6), weigh=Weighting(1.0, 0.0))


def test_a_text_shorter_than_a_rollouts_prompt_is_known_before_the_model_is_loaded() -> None:
    with pytest.raises(InputError, match="the calibration text has 400 tokens, fewer than one sample of 401"):
        rows(text=Rollouts(prompt=401, steps=8), length=500, mask=None)
