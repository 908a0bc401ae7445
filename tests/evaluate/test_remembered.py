"""A remembered model computes each input once, and the same; limits cut requests."""

from __future__ import annotations

import torch
from torch import Tensor

from qspec.evaluate.remembered import Remembered
from qspec.language.spec import Evaluation, NelboRequest, TaskRequest
from qspec.models.decoder import Decoder
from qspec.models.llada import LLADA
from tests.passes.conftest import SHAPE


class Counting(Decoder):
    calls = 0

    def hidden(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        self.calls += 1
        return super().hidden(input_ids, attention_mask)


def test_each_input_is_computed_once_within_the_limit() -> None:
    torch.manual_seed(0)
    model = Counting(LLADA, SHAPE).requires_grad_(False)
    one, other = torch.arange(12).reshape(2, 6), torch.arange(12).reshape(3, 4)  # the same bytes in other shapes
    mask = torch.tensor([[0, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]])
    size = 2 * 6 * SHAPE.width * 4
    remembered = Remembered(model, limit=2 * size)
    for ids, real in ((one, None), (one, mask), (other, None)) * 2:
        assert torch.equal(remembered.hidden(ids, real), Decoder.hidden(model, ids, real))
    assert model.calls == 4  # the first two once; the third is over the limit, and computed each time
    plain = Remembered(model)
    plain.hidden(one)
    plain.hidden(one)
    assert model.calls == 6


def test_a_limit_cuts_what_is_larger() -> None:
    wanted = Evaluation(
        (NelboRequest(samples=64), NelboRequest(samples=3)), (TaskRequest("gsm8k"), TaskRequest("mmlu", limit=2))
    )
    found = wanted.limited(5)
    assert [one.samples for one in found.nelbo] == [5, 3]
    assert [one.limit for one in found.tasks] == [5, 2]
