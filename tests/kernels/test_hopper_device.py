"""Single device functions of the kernels for compute capability 9.0, as PTX on a CPU against numpy."""

from __future__ import annotations

import importlib
from itertools import product
from typing import Any

import numpy as np
import pytest

from tests.kernels.ptx import Block, Program, bfloat16, widened

pytest.importorskip("triton")
devices = importlib.import_module("tests.kernels.hopper_devices")

ROWS, BYTES = 64, 16
ORDER = [0, 2, 1, 3]  # of a word's bytes, as they become operands: channels 2t, 2t + 1, 2t + 8, 2t + 9


def run(kernel: Any, types: dict[str, str], arguments: list[np.ndarray | int], blocks: int = 1, **fixed: int) -> None:
    """Arrays are pointers, and hold afterwards what the kernel wrote; fixed: constants."""
    compiled = devices.compiled(kernel, types, fixed)
    memory, places, end = np.zeros(1 << 16, np.uint8), [], 256
    for value in arguments:
        if isinstance(value, int):
            places.append(value)
            continue
        memory[end : end + value.nbytes] = value.view(np.uint8).ravel()
        places.append(end)
        end += -(-value.nbytes // 256) * 256
    program = Program(compiled.asm["ptx"])
    for block in range(blocks):
        Block(program, [*places, 0, 0], memory, block, blocks).run(128, compiled.metadata.shared)
    for value, place in zip(arguments, places, strict=True):
        if not isinstance(value, int):
            value.view(np.uint8).ravel()[:] = memory[place : place + value.nbytes]


def codes_and_offsets(bits: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Codes [64, 128], zero points [64], and what decoding subtracts, bfloat16 [64, 16]."""
    random = np.random.default_rng(seed)
    reach = 2 ** (bits - 1)
    codes, zero = random.integers(-reach, reach, (ROWS, 128)), random.integers(-reach, reach, ROWS)
    offset = bfloat16(np.repeat(128 + reach + zero.astype(np.float32), BYTES)).astype(np.uint16)
    return codes, zero, offset.reshape(ROWS, BYTES)


def decoded(out: np.ndarray) -> np.ndarray:
    """float32 [2, 64, 16] by the order of the bytes that held the codes."""
    values = widened(out).reshape(2, ROWS, BYTES // 4, 4)
    return values[..., ORDER].reshape(2, ROWS, BYTES)


@pytest.mark.parametrize(("bits", "half", "odd"), list(product((2, 3), (0, 1), (0, 1))))
def test_planes_are_decoded_exactly(bits: int, half: int, odd: int) -> None:
    """Byte j of 32 holds two bits of channels j + 32 i, byte j of 16 one bit of channels j + 16 i."""
    codes, zero, offset = codes_and_offsets(bits, seed=bits)
    pattern = codes & 2**bits - 1
    top, lowest = pattern >> bits - 2, pattern & 1
    high = sum(top[:, 32 * i : 32 * i + 32] << 2 * i for i in range(4)).astype(np.uint8)
    low = sum(lowest[:, 16 * i : 16 * i + 16] << i for i in range(8)).astype(np.uint8)
    out = np.zeros((2, ROWS, BYTES), np.uint16)
    types = {"high": "*u8", "low": "*u8", "offset": "*bf16", "out": "*bf16"}
    chunk = np.ascontiguousarray(high[:, 16 * odd : 16 * odd + 16])
    run(devices.planes_kernel, types, [chunk, low, offset, out], BITS=bits, HALF=half, ODD=odd)
    first = 64 * half + 16 * odd
    expected = [codes[:, start : start + 16] - zero[:, None] for start in (first, first + 32)]
    assert np.array_equal(decoded(out), np.stack(expected))


def test_nibbles_are_decoded_exactly() -> None:
    codes, zero, offset = codes_and_offsets(4, seed=4)
    packed = (codes[:, :16] & 15 | (codes[:, 64:80] & 15) << 4).astype(np.uint8)
    out = np.zeros((2, ROWS, BYTES), np.uint16)
    run(devices.nibbles_kernel, {"packed": "*u8", "offset": "*bf16", "out": "*bf16"}, [packed, offset, out])
    assert np.array_equal(decoded(out), np.stack([codes[:, :16], codes[:, 64:80]]) - zero[:, None])


@pytest.mark.parametrize(("tokens", "channels", "columns", "split"), [(40, 1000, 1152, 1), (16, 640, 1152, 3)])
def test_units_are_all_tiles_and_all_stages_once(tokens: int, channels: int, columns: int, split: int) -> None:
    """Tiles of 16 tokens and 64 channels, stages of 256; eight tiles of channels meet all tokens before the next."""
    rows, width, stages = -(-tokens // 16), -(-channels // 64), -(-columns // 256)
    found = np.zeros((rows * width * split, 5), np.int32)
    types = {"out": "*i32", "M": "i32", "N": "i32", "K": "i32"}
    run(devices.tiles_kernel, types, [found, tokens, channels, columns], blocks=len(found), SPLIT=split)
    bands = [range(start, min(start + 8, width)) for start in range(0, width, 8)]
    places = [[16 * m, 64 * n] for band in bands for m in range(rows) for n in band]
    assert found[::split, 1:3].tolist() == places
    for tile in range(rows * width):
        units = found[tile * split : (tile + 1) * split]
        assert set(units[:, 0]) == {tile}
        assert (units[:, 1:3] == places[tile]).all()
        assert [stage for unit in units for stage in range(unit[3], unit[4])] == list(range(stages))


def test_units_of_a_grouped_gemm_are_the_tiles_of_experts() -> None:
    """Three tiles of 16 rows, two of expert 4 and one of expert 1, of 192 channels each; two units more than there are.

    16, 5 and 9 of their rows are of a pair. Of units that there are not nothing is loaded.
    """
    tiles, columns = np.array([3, 4, 16, 4, 5, 1, 9, 7, 0], np.int32), 192
    found = np.zeros((3 * 3 + 2, 5), np.int32)
    types = {"out": "*i32", "tiles": "*i32", "units": "i32", "columns": "i32", "K": "i32"}
    run(devices.expert_tiles_kernel, types, [found, tiles, 3 * 3, columns, 1152], blocks=len(found))
    expected = [[16 * tile, 192 * expert + 64 * n, 0, 5] for tile, expert in enumerate((4, 4, 1)) for n in range(3)]
    assert found[:9, :4].tolist() == expected
    assert (found[9:, 2] == found[9:, 3]).all()
    assert found[:9, 4].tolist() == [16] * 3 + [5] * 3 + [9] * 3
