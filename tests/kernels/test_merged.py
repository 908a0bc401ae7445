"""Several linears of one input as one product: the same numbers, computed once."""

from __future__ import annotations

import pytest
import torch

from qspec.kernels.linear import QuantLinear
from qspec.kernels.merged import MergedPart, parts_of
from qspec.kernels.packing import PackedLinear
from qspec.models.decoder import project
from tests.kernels.cases import Format, random_input, random_linear, random_transform

FORMATS = (
    Format(),
    Format(w_symmetric=False, a_bits=8, a_symmetric=False),  # zero points two in a byte, and an odd number of them
    Format(w_bits=3, w_group=64, w_symmetric=False, a_bits=8, a_group=32),
    Format(w_bits=8, a_bits=8),
)
ROWS = (10, 7, 5)


def linears(fmt: Format, bias: bool = True) -> list[PackedLinear]:
    transform = random_transform((64,), 128, 1)
    return [random_linear(fmt, rows, 128, rows, bias=bias, transform=transform) for rows in ROWS]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("fmt", FORMATS, ids=str)
def test_a_merged_product_has_the_bits_of_its_parts(fmt: Format, bias: bool) -> None:
    alone = linears(fmt, bias)
    whole = PackedLinear.merged(alone)
    assert whole.out_features == 22
    assert torch.equal(whole.unpacked_codes(), torch.cat([one.unpacked_codes() for one in alone]))
    if not fmt.w_symmetric:
        assert torch.equal(whole.unpacked_zeros(), torch.cat([one.unpacked_zeros() for one in alone], dim=1))
    x = random_input(3, 128, 0)
    for part, one in zip(parts_of(QuantLinear(whole), ROWS), alone, strict=True):
        assert torch.equal(part(x), QuantLinear(one)(x))
        assert (part.in_features, part.out_features) == (128, one.out_features)
        assert part.transform is one.transform


def test_parts_are_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = QuantLinear(PackedLinear.merged(linears(Format())))
    other = QuantLinear(random_linear(Format(), 4, 128, seed=9))
    multiply, seen = QuantLinear.multiply, []
    monkeypatch.setattr(QuantLinear, "multiply", lambda self, given: seen.append(self) or multiply(self, given))
    x = random_input(3, 128, 0)
    a, b, c, d = project([*parts_of(whole, ROWS), other], x)
    assert seen == [whole, other]
    assert [y.shape[1] for y in (a, b, c, d)] == [10, 7, 5, 4]
    assert torch.equal(torch.cat([a, b, c], dim=1), whole(x))


def test_a_part_moves_with_its_whole() -> None:
    first, second = parts_of(QuantLinear(PackedLinear.merged(linears(Format())[:2])), ROWS[:2])
    assert isinstance(first.to("meta"), MergedPart)
    assert second.whole.codes.device.type == "meta"
