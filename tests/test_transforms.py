"""Online transforms: the block-diagonal product written out, and the exact inverse."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qspec.transforms import InputTransform, block_rotate


def test_block_rotate_is_the_block_diagonal_product() -> None:
    g = torch.Generator().manual_seed(0)
    x, r = torch.randn(5, 12, generator=g), torch.randn(4, 4, generator=g)
    torch.testing.assert_close(block_rotate(x, r), x @ torch.block_diag(r, r, r))


def test_apply_written_out() -> None:
    g = torch.Generator().manual_seed(1)
    x = torch.randn(3, 8, generator=g)
    r1, r2 = (torch.randn(4, 4, generator=g).half() for _ in range(2))
    p = torch.randperm(8, generator=g)
    rotated = x @ torch.block_diag(r1.float(), r1.float())
    permuted = torch.stack([rotated[:, int(j)] for j in p], 1)
    expected = permuted @ torch.block_diag(r2.float(), r2.float())
    torch.testing.assert_close(InputTransform((r1, r2), p.int()).apply(x), expected)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), permuted=st.booleans())
def test_weight_absorbs_any_invertible_rotation(seed: int, permuted: bool) -> None:
    g = torch.Generator().manual_seed(seed)
    x, w = (torch.randn(n, 16, generator=g, dtype=torch.float64) for n in (6, 9))
    rotations = [(torch.eye(8) + 0.2 * torch.randn(8, 8, generator=g)).half() for _ in range(1 + permuted)]
    transform = InputTransform(tuple(rotations), torch.randperm(16, generator=g).int() if permuted else None)
    got = transform.apply(x).double() @ transform.absorb(w).T
    assert (got - x @ w.T).norm() < 1e-4 * (x @ w.T).norm()


def test_stored_bits() -> None:
    r = torch.eye(8).half()
    assert InputTransform((r,)).stored_bits() == 64 * 16
    assert InputTransform((r, r), torch.arange(16).int()).stored_bits() == 2 * 64 * 16 + 16 * 32
