"""Recorded states are inputs that the sampler gave to the model, evenly from the buckets of their masked shares."""

from __future__ import annotations

import math
from collections import Counter
from typing import Literal

import pytest
import torch

from qspec.calibrate.rollouts import record, trajectory
from qspec.errors import InputError
from qspec.language.spec import Rollouts
from qspec.models.sampler import SamplerSettings, sample
from tests.calibrate.models import MASK, Remembers

PROMPT, LENGTH = 5, 29  # 24 tokens are generated


def prompts(count: int) -> torch.Tensor:
    return torch.randint(2, 40, (count, PROMPT), generator=torch.Generator().manual_seed(1))


def wanted(steps: int = 12, buckets: int = 4) -> Rollouts:
    return Rollouts(prompt=PROMPT, steps=steps, buckets=buckets)


def buckets_of(ids: torch.Tensor, buckets: int, mask: int) -> list[int]:
    """The bucket (b / B, (b + 1) / B] of each row's masked share, from whole numbers."""
    masks = [sum(token == mask for token in row[PROMPT:]) for row in ids.tolist()]
    return [math.ceil(count * buckets / (LENGTH - PROMPT)) - 1 for count in masks]


@pytest.mark.parametrize("family", ["llada", "dream"])
def test_every_row_was_given_to_the_model_on_the_way_of_its_own_prompt(family: Literal["llada", "dream"]) -> None:
    model = Remembers(family)
    start = prompts(6)
    recorded = record(model, start, wanted(), LENGTH, draws=2, seed=3)
    assert recorded.ids.shape == (12, LENGTH)
    assert {tuple(row) for row in recorded.ids.tolist()} <= set(model.seen)
    assert torch.equal(recorded.ids[:, :PROMPT], start.repeat_interleave(2, dim=0))
    assert len({tuple(row) for row in recorded.ids.tolist()}) == 12


def test_the_trajectory_is_the_samplers() -> None:
    model, start = Remembers(), prompts(2)
    states = trajectory(model, start, 8, LENGTH, seed=0)
    assert [tuple(row) for state in states.tolist() for row in state] == model.seen
    assert [(state[:, PROMPT:] == MASK).sum(1).tolist() for state in states] == [[24 - 3 * i] * 2 for i in range(8)]
    done = sample(model, start, None, SamplerSettings(length=24, steps=8, block=24))
    kept = states != MASK
    assert torch.equal(states[kept], done.expand_as(states)[kept])


@pytest.mark.parametrize(
    ("samples", "draws", "buckets", "steps"), [(8, 1, 4, 12), (6, 3, 4, 8), (5, 5, 5, 24), (7, 2, 3, 7)]
)
@pytest.mark.parametrize("family", ["llada", "dream"])
def test_rows_are_spread_evenly_over_buckets(
    family: Literal["llada", "dream"], samples: int, draws: int, buckets: int, steps: int
) -> None:
    model = Remembers(family)
    mask = model.shape.mask_token
    recorded = record(model, prompts(samples), wanted(steps, buckets), LENGTH, draws, seed=0)
    found = buckets_of(recorded.ids, buckets, mask)
    counts = Counter(found)
    assert set(counts) == set(range(buckets))
    assert max(counts.values()) - min(counts.values()) <= 1
    for first in range(0, samples * draws, draws):  # the draws of one prompt come from different buckets
        assert len(set(found[first : first + draws])) == draws
    share = [count / (LENGTH - PROMPT) for count in (recorded.ids[:, PROMPT:] == mask).sum(1).tolist()]
    assert recorded.ratio.tolist() == pytest.approx(share)


def test_the_trajectory_is_dreams_samplers() -> None:
    model, start = Remembers("dream"), prompts(2)
    states = trajectory(model, start, 8, LENGTH, seed=0)
    assert [tuple(row) for state in states.tolist() for row in state] == model.seen


def test_a_bucket_gives_each_of_its_states() -> None:
    """12 steps of 2 tokens, 2 buckets: the upper one holds 24, 22, .. 14 masks, the lower one 12, 10, .. 2."""
    recorded = record(Remembers(), prompts(80), wanted(12, 2), LENGTH, draws=1, seed=0)
    masks = (recorded.ids[:, PROMPT:] == MASK).sum(1)
    assert set(masks[0::2].tolist()) == {2, 4, 6, 8, 10, 12}
    assert set(masks[1::2].tolist()) == {14, 16, 18, 20, 22, 24}


def test_the_seed_decides() -> None:
    one, same, other = (record(Remembers(), prompts(8), wanted(), LENGTH, 1, seed).ids for seed in (0, 0, 1))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_a_bucket_that_no_state_falls_into() -> None:
    """Two steps of 12 tokens: 24 masks, then 12. No state has up to 8, a third."""
    with pytest.raises(InputError, match=r"no state with a share of masks above 0 and up to 0\.333333"):
        record(Remembers(), prompts(1), wanted(2, 3), LENGTH, draws=1, seed=0)


def test_dreams_rounding_may_skip_a_bucket_that_has_as_few_steps() -> None:
    """It commits int(m (1 - t' / t)) masks a step, so 24 become 19 instead of 18, and 7 are left for the last step."""
    assert record(Remembers(), prompts(4), wanted(4, 4), LENGTH, draws=1, seed=0).ids.shape == (4, LENGTH)
    with pytest.raises(InputError, match=r"share of masks above 0 and up to 0\.25"):
        record(Remembers("dream"), prompts(4), wanted(4, 4), LENGTH, draws=1, seed=0)
