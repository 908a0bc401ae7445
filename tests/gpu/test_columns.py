"""GPTQ's column loop as a CUDA graph gives what its operations give one by one."""

from __future__ import annotations

import pytest
import torch

from qspec import numerics
from qspec.formats import NUMBER_FORMATS, Granularity, TensorFormat
from qspec.passes.gptq import Columns, graphed, round_some

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("columns", [128, 37])
@pytest.mark.parametrize("asymmetric", [False, True])
@pytest.mark.parametrize("symmetric", [True, False])
def test_graph_equals_single_launches(columns: int, asymmetric: bool, symmetric: bool) -> None:
    number = NUMBER_FORMATS["int4"]
    for seed in (1, 2):  # the second call replays what the first recorded
        generator = torch.Generator("cuda").manual_seed(seed)

        def draw(*shape: int, generator: torch.Generator = generator) -> torch.Tensor:
            return torch.randn(shape, generator=generator, device="cuda")

        weight = draw(64, columns)
        scale, zero = numerics.weight_scales(weight, TensorFormat(number, Granularity("channel"), symmetric))
        each = Columns(
            weight,
            scale.expand(-1, columns),
            None if zero is None else zero.expand(-1, columns),
            draw(columns, columns).triu() * 0.1 + torch.eye(columns, device="cuda"),
            draw(columns, columns).triu(1) * 0.01 if asymmetric else None,
        )
        for found, expected in zip(graphed(each, number)(each), round_some(each, number), strict=True):
            assert torch.equal(found, expected)
            assert bool(found.float().abs().sum() > 0)
