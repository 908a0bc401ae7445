"""Nested masks, and how much of a text windows hold."""

from __future__ import annotations

import torch

from qspec.calibrate.tokens import Windows, positions_below, repetition, windows
from tests.calibrate.models import Letters


def test_the_same_draws_give_nested_masks() -> None:
    draw = torch.tensor([[0.0, 0.3, 0.5, 0.99], [0.7, 0.2, 0.9, 0.4]])
    low, high = (positions_below(torch.full((2,), ratio), draw) for ratio in (0.4, 0.75))
    assert low.tolist() == [[True, True, False, False], [False, True, False, False]]
    assert high.tolist() == [[True, True, True, False], [True, True, False, True]]
    assert not positions_below(torch.zeros(2), draw).any()
    assert positions_below(torch.ones(2), draw).all()
    assert positions_below(torch.tensor([0.0, 1.0]), draw).tolist() == [[False] * 4, [True] * 4]


# --- how much of a text the rows hold ---


def drawn(tokens: int, samples: int, length: int) -> Windows:
    text = "abcdefghij" * (tokens // 10) + "k" * (tokens % 10)
    return windows([text], Letters(), 1000, samples, length, torch.Generator().manual_seed(0))


def test_distinct_tokens_are_places_of_the_text_not_words() -> None:
    """Ten letters over and over are 100 places; a window of all of them is all of them, drawn three times."""
    found = drawn(100, samples=3, length=100)
    assert (found.distinct, found.drawn) == (100, 300)


def test_a_text_of_121_tokens_is_no_128_rows() -> None:
    found = drawn(121, samples=128, length=64)
    assert (found.distinct in (120, 121), found.drawn) == (True, 8192)  # its first token is in one start of 58
    said = repetition(found.distinct, found.drawn) or ""
    assert f"its rows draw 8,192 tokens and hold {found.distinct} distinct ones, each 68 times on average" in said


def test_enough_text_is_passed_by() -> None:
    assert repetition(2048, 8192) is None  # each four times
    assert repetition(2047, 8192) is not None
    found = drawn(8192, samples=128, length=64)
    assert 0.5 < found.distinct / found.drawn < 0.75  # 63 % but for the ends
