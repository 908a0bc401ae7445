"""Several linears of one input as one product: the same numbers, computed once."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from qspec.kernels.linear import QuantLinear
from qspec.kernels.merged import MergedPart, parts_of
from qspec.kernels.packing import PackedLinear
from qspec.models.inputs import Gated
from qspec.models.operations import project
from tests.kernels.cases import (
    FLOATS,
    Format,
    dequantized,
    random_gates,
    random_input,
    random_linear,
    random_transform,
)

FORMATS = (
    Format(),
    Format(w_symmetric=False, a_bits=8, a_symmetric=False),  # zero points two in a byte, and an odd number of them
    Format(w_bits=3, w_group=64, w_symmetric=False, a_bits=8, a_group=32),
    Format(w_bits=8, a_bits=8),
)
GATED = (  # integers, whose products are the same bits however they are cut
    *FORMATS,
    Format(w_bits=8, w_symmetric=False, a_bits=8),  # zero points of a byte
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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("fmt", GATED, ids=str)
def test_a_gated_product_has_the_bits_of_gate_and_up(fmt: Format, bias: bool, dtype: torch.dtype) -> None:
    transform = random_transform((64,), 128, 1)
    gate, up = (random_linear(fmt, 48, 128, seed, bias, transform) for seed in (1, 2))
    whole = QuantLinear(PackedLinear.merged([replace(one, kernels=one.kernels.gated()) for one in (gate, up)]))
    x = random_input(6, 128, 0, dtype).reshape(2, 3, 128)
    found = whole(x)
    assert (whole.out_features, found.shape, found.dtype) == (48, (2, 3, 48), dtype)
    assert torch.equal(found, Gated(QuantLinear(gate)(x), QuantLinear(up)(x)).value())
    assert whole(x[:0]).shape == (0, 3, 48)


@pytest.mark.parametrize("fmt", [Format(w_group=64, w_symmetric=False, a_bits=16), *FLOATS], ids=str)
def test_channels_of_gate_and_up_come_in_turn(fmt: Format) -> None:
    gated, plain = random_gates(fmt, 24, 128, 3)
    order = [8 * turn + 24 * which + i for turn in range(3) for which in range(2) for i in range(8)]
    assert order[:20] == [0, 1, 2, 3, 4, 5, 6, 7, 24, 25, 26, 27, 28, 29, 30, 31, 8, 9, 10, 11]
    assert torch.equal(dequantized(gated), dequantized(plain)[order])
    assert torch.equal(gated.bias, plain.bias[order])


def test_a_gated_product_is_one_operator() -> None:
    gated, plain = random_gates(Format(), 24, 128, 4)
    linear, x = QuantLinear(gated), random_input(5, 128, 0)
    compiled = torch.compile(linear.multiply, backend="aot_eager", fullgraph=True)
    # torch's exponential of strided memory may differ from that of a whole row by a last bit
    gate, up = (part.contiguous() for part in QuantLinear(plain)(x).chunk(2, dim=1))
    assert torch.equal(compiled(linear.prepare(x)), Gated(gate, up).value())


def test_a_part_moves_with_its_whole() -> None:
    first, second = parts_of(QuantLinear(PackedLinear.merged(linears(Format())[:2])), ROWS[:2])
    assert isinstance(first.to("meta"), MergedPart)
    assert second.whole.codes.device.type == "meta"
