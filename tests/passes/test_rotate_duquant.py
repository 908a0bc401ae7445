"""DuQuant's parts: orthogonality, the zigzag dealing, and what the rotation is for."""

from __future__ import annotations

import torch

from qspec.passes.parameters import RotateDuquant
from qspec.passes.rotate_duquant import fit, spreading_rotation, zigzag


def test_spreading_rotation_spreads_one_channel_evenly() -> None:
    r = spreading_rotation(16, torch.Generator().manual_seed(0)).double()
    torch.testing.assert_close(r @ r.T, torch.eye(16, dtype=torch.float64), rtol=0, atol=1e-6)
    torch.testing.assert_close(r[0], torch.full((16,), 0.25, dtype=torch.float64), rtol=0, atol=1e-6)


def test_zigzag_deals_back_and_forth() -> None:
    # peaks 8 > 7 > ... > 1 at channels 0..7, two blocks of four: 0 | 1, 2 back to the second block, ...
    peaks = torch.tensor([8.0, 7, 6, 5, 4, 3, 2, 1])
    assert zigzag(peaks, 4).tolist() == [0, 3, 4, 7, 1, 2, 5, 6]
    assert sorted(zigzag(torch.rand(96), 16).tolist()) == list(range(96))


def test_rotations_are_orthogonal_and_outliers_shrink() -> None:
    g = torch.Generator().manual_seed(1)
    x = torch.randn(200, 64, generator=g)
    x[:, 3] *= 50  # normal outlier
    x[7, 40] = 400  # massive one
    transform = fit(RotateDuquant(block=16, steps=32), x, g)
    for r in transform.rotations:
        torch.testing.assert_close(r.double() @ r.double().T, torch.eye(16, dtype=torch.float64), rtol=0, atol=2e-3)
    y = transform.apply(x)
    assert y.abs().max() < 0.45 * x.abs().max()
    assert y.abs().amax(1).square().mean() < 0.25 * x.abs().amax(1).square().mean()


def test_the_weight_absorbs_the_stored_rotation_exactly() -> None:
    g = torch.Generator().manual_seed(2)
    x, w = torch.randn(50, 64, generator=g), torch.randn(24, 64, generator=g)
    transform = fit(RotateDuquant(block=32, steps=9), x, g)
    exact = x.double() @ w.double().T
    got = transform.apply(x).double() @ transform.absorb(w.double()).T
    assert (got - exact).norm() / exact.norm() < 1e-6
