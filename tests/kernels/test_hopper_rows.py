"""Where the second activation quantization kernels keep things, and how they cut rotations."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise, product

import pytest
import torch

from tests.kernels.cases import SECOND_ROWS
from tests.kernels.devices import device_module


def test_blocks_are_cut_into_powers_of_two() -> None:
    spans_of = device_module("hopper_rows_layouts").spans_of
    assert spans_of(128) == [(0, 128)]
    assert spans_of(148) == [(0, 128), (128, 32)]
    assert spans_of(96) == [(0, 64), (64, 32)]
    assert spans_of(28) == [(0, 32)]
    assert spans_of(12) == [(0, 16)]


@pytest.mark.parametrize("size", [12, 28, 96, 128, 148, 256])
@pytest.mark.parametrize(("first", "last", "fine"), [*product((64, 128, 192), (64, 192, 256), (False, True))])
def test_shared_memory_has_a_place_for_everything(size: int, first: int, last: int, fine: bool) -> None:
    """Kilobytes: blocks of 128 float16 are a quarter each, the first rotation 32."""
    operands = device_module("hopper_rows_operands")
    spans = device_module("hopper_rows_layouts").spans_of(size)
    starts = [operands.permuted_start(size, last, span) for span in range(len(spans) + 1)]
    assert [b - a for a, b in pairwise(starts)] == [last * width * 2 / 1024 for _, width in spans]
    rest = operands.rest_start(True, last, size)
    assert rest == starts[-1] + 1
    operand = operands.operand_start(True, first, last, size, fine)
    rotation0 = operands.rotation0_start(True, first, last, size, fine)
    end = 2 * rest if fine else rest
    assert operand in (0, end)
    assert operand + first / 4 <= (rotation0 if operand else rest)
    assert operand == end or size in (128, 256, 96)  # padding lies where nothing else is written
    assert rotation0 >= end
    cells = [(k, n) for k in range(len(spans)) for n in range(len(spans))]
    places = [operands.rotation1_start(rotation0, size, *cell) for cell in (*cells, (len(spans), 0))]
    assert places[0] == rotation0 + 32
    for (k, n), (start, following) in zip(cells, pairwise(places), strict=True):
        assert following - start >= spans[k][1] * spans[n][1] * 2 / 1024


def test_no_more_programs_are_launched_than_run_at_once() -> None:
    """Eight multiprocessors stand for those of a GPU; a program has ROWS rows at a time."""
    launched = []

    class Kernel:
        def __getitem__(self, grid: tuple[int]) -> Callable[..., None]:
            return lambda *arguments, **options: launched.append((grid, arguments, options))

    heuristics = device_module("row_heuristics")
    for rows in (10, 100):
        x = torch.zeros(rows, 4096)
        heuristics.launch_hopper_rows(Kernel(), ("x", "scale"), x, {"PROGRAMS": 2, "ROWS": 2, "num_warps": 8})
    options = {"K": 4096, "ROWS": 2, "num_warps": 8, "launch_pdl": True, "enable_fp_fusion": False}
    assert launched == [((5,), ("x", "scale", 10, 4096), options), ((16,), ("x", "scale", 100, 4096), options)]


@SECOND_ROWS
def test_rows_of_the_second_kernel_fit() -> None:
    fit = device_module("row_heuristics").hopper_rows_fit
    assert fit(4096, 128)
    assert not fit(4100, 128)  # no whole blocks
    assert fit(24576, 128)
    assert not fit(24704, 128)
    assert not fit(28 * 257 // 128 * 128 + 128, 28)  # more than 256 blocks of 28


@pytest.mark.parametrize(
    ("tokens", "columns", "warps"),
    [
        (128, 12288, 32),  # up to one row a multiprocessor: 8 channels a thread
        (129, 12288, 32),  # 64 warps of 132 multiprocessors are 65 for each of 129 rows, and 32 are the most
        (384, 12288, 16),  # 22 for each
        (512, 12288, 16),
        (513, 18944, 16),  # 16 for each, and 32768 places in no fewer
        (1024, 12288, 8),
        (4096, 12288, 8),  # 2 for each, but a thread has no more than 64 channels
        (384, 4096, 4),
    ],
)
def test_rows_have_as_many_warps_as_run_at_once(tokens: int, columns: int, warps: int) -> None:
    assert device_module("row_heuristics").row_tiles(columns, tokens, 1, 1)["num_warps"] == warps
