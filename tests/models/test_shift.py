"""Which hidden state predicts a position, with padding on any side."""

from __future__ import annotations

import pytest
import torch

from qspec.models.dream import DREAM
from qspec.models.llada import LLADA
from qspec.models.shift import predictors, sources
from tests.models.dream_layout import TINY_DREAM
from tests.models.layout import TINY

HIDDEN = torch.arange(6.0).repeat(2, 1).unsqueeze(-1)  # the state of position i is i


@pytest.mark.parametrize(
    ("mask", "expected"),
    [
        (None, [0, 0, 1, 2, 3, 4]),
        ([1, 1, 1, 1, 1, 1], [0, 0, 1, 2, 3, 4]),
        ([0, 0, 1, 1, 1, 1], [0, 1, 2, 2, 3, 4]),  # the first real token is predicted from itself
        ([1, 1, 1, 1, 0, 0], [0, 0, 1, 2, 3, 3]),
        ([1, 1, 0, 0, 1, 1], [0, 0, 1, 1, 1, 4]),  # a prompt padded at its right, then the text
        ([0, 1, 0, 0, 0, 1], [0, 1, 1, 1, 1, 1]),
    ],
)
def test_a_token_is_predicted_from_the_real_one_before_it(mask: list[int] | None, expected: list[int]) -> None:
    real = None if mask is None else torch.tensor([[1] * 6, mask])
    found = predictors(HIDDEN, DREAM.shape(TINY_DREAM), real)
    assert found[1, :, 0].tolist() == expected
    assert found[0, :, 0].tolist() == [0, 0, 1, 2, 3, 4]


def test_without_a_shift_every_position_predicts_itself() -> None:
    assert predictors(HIDDEN, LLADA.shape(TINY), torch.ones(2, 6)) is HIDDEN


@pytest.mark.parametrize("config", [TINY, TINY_DREAM])
def test_sources_are_the_places_of_the_predictors(config: dict[str, int]) -> None:
    shape = LLADA.shape(config) if config is TINY else DREAM.shape(config)
    real = torch.tensor([[1] * 6, [0, 0, 1, 1, 1, 1], [1, 1, 0, 0, 1, 1]]) != 0
    states = HIDDEN[:1].expand(3, -1, -1)
    assert torch.equal(sources(shape, real), predictors(states, shape, real)[..., 0].long())
