"""Whether a number depends on how many rows go through a model at once: on a whole model in float32, rows padded.

The sums of a float32 product may be taken in another order for another number of rows, which moves a logit by some
1e-6; a text differs only where two candidates are that near.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from qspec.data import Choice, TextData
from qspec.evaluate import forward, tasks
from qspec.evaluate.likelihood import likelihoods
from qspec.evaluate.nelbo import measure_nelbo
from qspec.evaluate.tasks import denoise
from qspec.language.spec import NelboRequest
from qspec.models.decoder import Decoder
from qspec.models.sampler import settings_for
from tests.models.test_cached import dream, llada

LETTERS = "abcdefghijklmnopqrstuvwxyz"


class Letters:
    """Tokens 3 to 28."""

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        return [3 + LETTERS.index(one) for one in text if not add_special_tokens]

    def decode(self, token_ids: list[int], *, skip_special_tokens: bool) -> str:
        return " ".join(map(str, token_ids)) if skip_special_tokens else ""


@pytest.fixture(params=[llada, dream], ids=["llada", "dream"])
def model(request: pytest.FixtureRequest) -> Decoder:
    """It writes no mask tokens, as trained models do not: Dream's sampler commits in every row a share of the mean
    number of masks that are left, as published, and a row that writes masks would change that of the others."""
    made: Decoder = request.param().float()
    made.absent = torch.arange(made.shape.vocab) == made.shape.mask_token
    return made


def set_rows(monkeypatch: pytest.MonkeyPatch, rows: int, longest: int) -> None:
    monkeypatch.setattr(tasks, "BATCH_TOKENS", rows * longest)
    monkeypatch.setattr(forward.batches, "__defaults__", (rows * longest,))


def test_texts_by_one_and_by_eight(model: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = [Letters().encode(LETTERS[:size], add_special_tokens=False) for size in (3, 17, 9, 5, 12, 4, 20, 7)]
    settings = settings_for(model.shape, 16, 8, 8)
    found = []
    for rows in (1, 8):
        set_rows(monkeypatch, rows, 36)
        found.append(denoise(model, prompts, settings))
    assert torch.equal(found[0].tokens, found[1].tokens)
    assert torch.equal(found[0].commit_step, found[1].commit_step)
    assert len({tuple(row) for row in found[0].tokens.tolist()}) > 1


def test_likelihoods_by_one_and_by_eight(model: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    choices = [Choice(LETTERS[:size], LETTERS[size : size + 4]) for size in (3, 17, 9, 5, 12)]
    found = []
    for rows in (1, 8):
        set_rows(monkeypatch, rows, 21)
        found.append(likelihoods(model, Letters(), choices, 8, 0))
    assert found[0] == pytest.approx(found[1], rel=1e-5)
    assert len(set(found[0])) == len(choices)


def test_bounds_by_one_and_by_eight(model: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    data = TextData("text", (Path("t.txt"),), (LETTERS * 10,))
    found = []
    for rows in (1, 8):
        set_rows(monkeypatch, rows, model.shape.max_length)
        found.append(measure_nelbo(model, model, Letters(), data, NelboRequest(samples=4), 0).metric)
    assert [one for one, _ in found[0].items] == pytest.approx([one for one, _ in found[1].items], rel=1e-5)
    assert found[0].quantized == found[0].baseline
