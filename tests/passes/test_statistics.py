from __future__ import annotations

import torch

from qspec.passes.statistics import Observer, Tokens


def test_of_tokens_with_equal_peaks_the_first_are_kept() -> None:
    """Rows of masked tokens are often equal in their peak; which of them count may not depend on the device."""
    gather = Observer(2, torch.Generator().manual_seed(0))
    rows = 2 * gather.top
    x = torch.stack((torch.full((rows,), 7.0), torch.arange(rows) / rows), dim=1)
    tokens = Tokens(torch.ones(rows, dtype=torch.bool), torch.ones(rows))
    for part in (x, x + torch.tensor([0.0, 1.0])):
        gather.observe(part, tokens)
    assert gather.largest is not None
    assert torch.equal(gather.largest, x[: gather.top])
