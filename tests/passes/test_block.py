"""Statistics and Hessians of masked and visible positions, kept apart and weighed."""

from __future__ import annotations

from collections.abc import Callable

import torch

from qspec.passes.block import Block
from tests.passes.conftest import scheme

SITE = "mlp.input"


def weighed(make_block: Callable[..., Block]) -> tuple[Block, torch.Tensor, torch.Tensor, torch.Tensor]:
    """A block with masks and weights of its own, and X float64, masked and weight of all tokens of its input."""
    block = make_block(scheme("int4", None))
    generator = torch.Generator().manual_seed(7)
    x = torch.cat([seen[SITE] for seen, _ in block.observed.inputs({SITE})]).double()
    for batch in block.observed.stream.batches:
        batch.masked = torch.rand(batch.masked.shape, generator=generator) < 0.4
        batch.weight = torch.rand(batch.weight.shape, generator=generator) + 0.5
    masked = torch.cat([batch.masked.flatten() for batch in block.observed.stream.batches])
    weight = torch.cat([batch.weight.flatten() for batch in block.observed.stream.batches]).double()
    return block, x, masked, weight


def test_hessians_by_state_are_weighted_sums(make_block: Callable[..., Block]) -> None:
    block, x, masked, weight = weighed(make_block)
    for which, chosen in (("all", masked | True), ("masked", masked), ("visible", ~masked)):
        c = weight * chosen
        expected = 2 * (x.T * c) @ x / c.sum()
        torch.testing.assert_close(block.observed.hessian(SITE, None, which).double(), expected, rtol=1e-4, atol=1e-6)  # type: ignore[arg-type]


def test_statistics_by_state(make_block: Callable[..., Block]) -> None:
    block, x, masked, weight = weighed(make_block)
    found = block.observed.statistics(SITE)
    for part, chosen in ((found.masked, masked), (found.visible, ~masked)):
        mean = (x[chosen].abs() * weight[chosen, None]).sum(0) / weight[chosen].sum()
        torch.testing.assert_close(part.peaks.double(), x[chosen].abs().amax(0))
        torch.testing.assert_close(part.mean.double(), mean, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(
        found.mean.double(), (x.abs() * weight[:, None]).sum(0) / weight.sum(), rtol=1e-5, atol=1e-7
    )


def test_tokens_of_weight_zero_do_not_count(make_block: Callable[..., Block]) -> None:
    block, x, masked, _ = weighed(make_block)
    for batch in block.observed.stream.batches:
        batch.weight = batch.masked.float()
    expected = 2 * x[masked].T @ x[masked] / masked.sum()
    torch.testing.assert_close(block.observed.hessian(SITE, None).double(), expected, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(block.observed.statistics(SITE).peaks.double(), x[masked].abs().amax(0))
