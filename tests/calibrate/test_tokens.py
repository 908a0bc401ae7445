"""Nested masks."""

from __future__ import annotations

import torch

from qspec.calibrate.tokens import positions_below


def test_the_same_draws_give_nested_masks() -> None:
    draw = torch.tensor([[0.0, 0.3, 0.5, 0.99], [0.7, 0.2, 0.9, 0.4]])
    low, high = (positions_below(torch.full((2,), ratio), draw) for ratio in (0.4, 0.75))
    assert low.tolist() == [[True, True, False, False], [False, True, False, False]]
    assert high.tolist() == [[True, True, True, False], [True, True, False, True]]
    assert not positions_below(torch.zeros(2), draw).any()
    assert positions_below(torch.ones(2), draw).all()
    assert positions_below(torch.tensor([0.0, 1.0]), draw).tolist() == [[False] * 4, [True] * 4]
