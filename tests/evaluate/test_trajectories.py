"""How two trajectories part, by hand."""

from __future__ import annotations

import pytest
import torch

from qspec.evaluate import trajectories
from qspec.evaluate.trajectories import NEVER, Trajectory, compare
from tests.evaluate.models import EOS


def test_commit_flips_by_hand() -> None:
    end = EOS
    before = Trajectory(torch.tensor([[5, 6, end, end], [7, 8, 9, 9]]), torch.tensor([[0, 1, 2, 3], [3, 2, 1, 0]]))
    after = Trajectory(torch.tensor([[5, 1, end, 2], [7, 8, 9, 1]]), torch.tensor([[0, 2, 1, 0], [3, 2, 0, 1]]))
    found = compare("t", before, after, 4, end)
    # counted: the first row's first three positions, all of the second
    assert found.positions == 7
    assert found.token_flips == pytest.approx(2 / 7)
    # step 0: (row 0, place 0) kept, (row 1, place 3) moved; 1: both moved; 2: moved, kept; 3: kept
    assert found.commit_flips == (0.5, 1.0, 0.5, 0.0)
    assert found.mean == pytest.approx(4 / 7)


def test_first_divergence_and_same_texts_by_hand() -> None:
    """Row 0: place 1 is committed at 1 and 2, place 2 at 2 and 1: parted at 1. Row 1: place 2 at 1 and 0: at once.
    Row 2 is the same up to its end. Medians of 1/4, 0, 1."""
    end = EOS
    before = Trajectory(
        torch.tensor([[5, 6, end, end], [7, 8, 9, 9], [4, end, 3, 3]]),
        torch.tensor([[0, 1, 2, 3], [3, 2, 1, 0], [0, 1, 2, 3]]),
    )
    after = Trajectory(
        torch.tensor([[5, 1, end, 2], [7, 8, 9, 9], [4, end, 1, 2]]),
        torch.tensor([[0, 2, 1, 0], [3, 2, 0, 0], [0, 1, 3, 2]]),
    )
    found = compare("t", before, after, 4, end)
    assert (found.texts, found.same_texts, found.first_divergence) == (3, 2, 0.25)


def test_a_text_that_ended_earlier_parts_where_it_ended() -> None:
    """In blocks of two of the same steps: place 1 is another token at step 1, and what is behind is never committed."""
    before = Trajectory(torch.tensor([[5, 6, 7, EOS]]), torch.tensor([[0, 1, 3, 2]]))
    after = Trajectory(torch.tensor([[5, EOS, EOS, EOS]]), torch.tensor([[0, 1, NEVER, NEVER]]))
    found = compare("t", before, after, 4, EOS)
    assert (found.positions, found.mean, found.token_flips, found.first_divergence) == (4, 0.5, 0.5, 0.25)
    assert found.commit_flips == (0.0, 0.0, 1.0, 1.0)
    late = Trajectory(torch.tensor([[5, 6, EOS, EOS]]), torch.tensor([[0, 1, NEVER, NEVER]]))
    assert compare("t", before, late, 4, EOS).first_divergence == 0.5


def test_a_token_that_differs_at_the_same_step_parts_the_texts_there() -> None:
    before = Trajectory(torch.tensor([[5, 6]]), torch.tensor([[0, 1]]))
    after = Trajectory(torch.tensor([[5, 7]]), torch.tensor([[0, 1]]))
    found = compare("t", before, after, 2, EOS)
    assert (found.mean, found.token_flips, found.same_texts, found.first_divergence) == (0.0, 0.5, 0, 0.5)
    same = compare("t", before, before, 2, EOS)
    assert (same.same_texts, same.first_divergence) == (1, 1.0)
    assert (same.tokens_per_step, compare("t", before, before, 1, EOS).tokens_per_step) == (1.0, 2.0)


def test_a_step_at_which_nothing_counts_has_no_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Trajectory(torch.tensor([[5, EOS, 6, 6]]), torch.tensor([[0, 1, 2, 3]]))
    assert compare("t", run, run, 4, EOS).commit_flips == (0.0, 0.0, None, None)
    monkeypatch.setattr(trajectories, "FLIP_PARTS", 2)
    assert compare("t", run, run, 4, EOS).commit_flips == (0.0, None)
