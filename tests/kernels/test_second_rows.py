"""Row kernels for compute capability 9.0 as PTX on a CPU: the second ones have the reference's codes and no races.

Of the first ones the quotients at ties: Triton's interpreter rounds a fused multiplication twice.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from qspec.catalog import ActivationKernel
from qspec.kernels import reference
from qspec.kernels.ahead import TARGETS, _compile
from qspec.kernels.generate import library
from qspec.kernels.launch import PlacedTransform
from qspec.kernels.reference import PreparedInput
from qspec.models.inputs import Gated, LayerInput, Normed
from qspec.transforms import InputTransform
from tests.kernels.cases import SECOND_ROWS, codes_that_differ, random_given, random_transform, scale_tolerance
from tests.kernels.ptx import Block, Program

MANY = 1024  # rows for which a program takes two of 4096 channels


def run(
    row: ActivationKernel,
    transform: InputTransform | None,
    given: LayerInput,
    tokens: int,
    change: Callable[[str], str] = str,
    blocks: int = 2,
) -> tuple[PreparedInput, set[int]]:
    """Codes and scales from blocks that share the rows, and where they race.

    tokens: for which the kernel is compiled. change: of its PTX.
    """
    placed = {} if transform is None else PlacedTransform.of(transform, torch.device("cpu")).arguments()
    x = given if isinstance(given, Tensor) else given.x
    more: list[Tensor | float] = []
    if isinstance(given, Normed):
        more = [given.gain, given.eps]
    elif isinstance(given, Gated):
        more = [given.up.contiguous()]
    rows, columns = x.shape
    codes, scale = torch.full((rows, columns), 99, dtype=torch.int8), torch.full((1, rows), float("nan"))
    compiled = _compile(library(None).module(row), row, TARGETS["sm_90"], tokens, columns)
    memory, arguments, end = np.zeros(1 << 21, np.uint8), [], 256
    tensors = [x.contiguous(), *more, *placed.values(), codes, scale]
    for value in tensors:
        if isinstance(value, float):
            arguments.append(int(np.float32(value).view(np.uint32)))
            continue
        data = value.contiguous().view(torch.uint8).numpy().ravel()
        memory[end : end + len(data)] = data
        arguments.append(end)
        end += -(-len(data) // 256) * 256
    program, races = Program(change(compiled.asm["ptx"])), set[int]()
    for index in range(blocks):
        block = Block(program, [*arguments, rows, columns, 0, 0], memory, index, blocks)
        block.run(32 * compiled.metadata.num_warps, compiled.metadata.shared)
        races |= block.races()
    found = memory[arguments[-2] :][: codes.numel()].view(np.int8).reshape(codes.shape)
    scales = memory[arguments[-1] :][: 4 * rows].view(np.float32).reshape(scale.shape)
    return PreparedInput(torch.from_numpy(found.copy()), torch.from_numpy(scales.copy()), None, x.shape, x.dtype), races


CASES = (
    (ActivationKernel((128,), 4, None, True, 1.0, "rmsnorm"), 4096, 3, MANY),
    (ActivationKernel((128, 128), 4, None, True, 0.9, "rmsnorm"), 4096, 5, MANY),
    (ActivationKernel((128, 28), 8, None, True, 1.0), 3584, 2, 1),
    (
        ActivationKernel((128, 12), 4, None, True, 1.0),
        1536,
        2,
        1,
    ),  # a second rotation of 16 x 16 halves: half a kilobyte
    pytest.param(ActivationKernel((128, 36), 8, None, True, 1.0), 4608, 2, 1, marks=pytest.mark.slow),
    (ActivationKernel((128, 96), 4, None, True, 1.0, "silu_mul"), 12288, 2, MANY),
    (ActivationKernel((128,), 4, None, True, 1.0, "gelu_tanh_mul"), 1024, 2, 1),
    pytest.param(ActivationKernel((128, 148), 8, None, True, 1.0, "silu_mul"), 18944, 2, MANY, marks=pytest.mark.slow),
)


@SECOND_ROWS
@pytest.mark.filterwarnings("ignore:overflow")  # of exp(-gate), by which f(gate) is 0
@pytest.mark.parametrize(("row", "columns", "rows", "tokens"), CASES, ids=lambda part: getattr(part, "name", part))
def test_second_row_kernels_give_the_references_codes(
    row: ActivationKernel, columns: int, rows: int, tokens: int
) -> None:
    transform = random_transform(row.rotations, columns, seed=1)
    assert transform is not None
    given = random_given(row.source, rows, columns, rows, torch.bfloat16)
    found, races = run(row, transform, given, tokens)
    expected = reference.prepare(row, transform, given)
    assert torch.allclose(found.scale, expected.scale, rtol=scale_tolerance(row, torch.bfloat16), atol=0)
    assert codes_that_differ(found, expected) < 2e-3
    assert races == set()


@SECOND_ROWS
def test_a_barrier_that_is_missing_shows() -> None:
    """Before places are read, before each product, before values are sent to where a product read, before ranges."""
    row, columns = ActivationKernel((128, 128), 4, None, True, 1.0), 1024
    transform = random_transform(row.rotations, columns, seed=1)
    assert transform is not None
    given = random_given("plain", 3, columns, 3, torch.bfloat16)

    def without(number: int) -> Callable[[str], str]:
        def change(ptx: str) -> str:
            at = [match.start() for match in re.finditer(r"bar\.sync", ptx)]
            return ptx[: at[number]] + "griddepcontrol.wait; //" + ptx[at[number] :] if number < len(at) else ptx

        return change

    assert sum(bool(run(row, transform, given, 1, without(number))[1]) for number in range(9)) >= 5


@pytest.mark.parametrize("clip", [1.0, 0.9])
@pytest.mark.parametrize("bits", [4, 8])
def test_quotients_at_ties_are_the_references(bits: int, clip: float) -> None:
    """Every mantissa of a bfloat16 against every mantissa of its row's largest: half of it is 63.5 or 3.5 steps."""
    peak = torch.arange(128, 256.0)[:, None]
    below = -torch.arange(1, 256.0).expand(128, -1).minimum(peak)
    x = torch.cat([torch.cat([peak, below], 1) / 2**step for step in range(4)], 1).bfloat16()
    row = ActivationKernel((), bits, None, True, clip)
    found, races = run(row, None, x, MANY, blocks=len(x))
    expected = reference.prepare(row, None, x)
    assert torch.equal(found.scale, expected.scale)
    assert torch.equal(found.values, expected.values)
    assert races == set()
