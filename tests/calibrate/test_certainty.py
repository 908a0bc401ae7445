"""Certainties against the softmax of the whole model's logits."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest
import torch

from qspec.calibrate import certainty as module
from qspec.calibrate.certainty import certainty
from qspec.errors import NumericsError
from tests.calibrate.models import MASK, Remembers


def rows(count: int, length: int, mask: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(2, 40, (count, length), generator=generator)
    masked = torch.rand(ids.shape, generator=generator) < 0.4
    masked[1] = False  # a row that the model sees in full
    return ids.masked_fill(masked, mask), masked


def expected(model: Remembers, ids: torch.Tensor, masked: torch.Tensor, shift: bool) -> np.ndarray:
    """Position by position in float64."""
    found = np.ones(ids.shape)
    for row in range(ids.shape[0]):
        logits = model(ids[row : row + 1]).logits[0].double().numpy()
        for i in np.flatnonzero(masked[row].numpy()):
            weights = np.exp(logits[max(i - 1, 0) if shift else i])
            found[row, i] = weights.max() / weights.sum()
    return found


@pytest.mark.parametrize(("family", "shift"), [("llada", False), ("dream", True)])
def test_certainties_are_the_largest_probabilities_at_masks(
    family: Literal["llada", "dream"], shift: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Remembers(family)
    ids, masked = rows(5, 12, model.shape.mask_token)
    masked[0, 0], ids[0, 0] = True, model.shape.mask_token
    found = certainty(model, ids, masked)
    np.testing.assert_allclose(found.numpy(), expected(model, ids, masked, shift), rtol=1e-5)
    assert (found[~masked] == 1).all()
    assert 0 < float(found[masked].min()) < float(found[masked].max()) < 1
    monkeypatch.setattr(module, "BATCH_TOKENS", 24)  # two rows a forward, three positions a head
    monkeypatch.setattr(module, "HEAD_VALUES", 3 * model.shape.vocab)
    torch.testing.assert_close(certainty(model, ids, masked), found)


def test_logits_that_are_no_numbers() -> None:
    model = Remembers()
    model.head.weight.fill_(float("nan"))  # type: ignore[union-attr]
    with pytest.raises(NumericsError, match="NaN or Inf"):
        certainty(model, *rows(2, 8, MASK))
