"""Tiles and options of the GEMMs: what each rule gives, and that shared memory and registers hold it."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest

from tests.kernels.devices import device_module

pytest.importorskip("triton")
heuristics = device_module("gemm_heuristics")
HopperFormat = heuristics.HopperFormat

INT4, INT8 = HopperFormat(4, 0, 4, False, False), HopperFormat(8, 0, 8, False, False)
NIBBLES, PLANES = HopperFormat(4, 128, 16, False, False), HopperFormat(3, 128, 16, False, False)


def options(n: int, m: int, blocks: int, stages: int, **others: int) -> dict[str, Any]:
    tiles = {"BLOCK_N": n, "BLOCK_M": m, "K_BLOCKS": blocks, "STAGES": stages}
    return {**tiles, "SPLIT": 1, "CTAS_PER_SM": 1, "K_SLICES": 1, **others}


@pytest.mark.parametrize(
    ("kind", "tokens", "channels", "columns", "expected"),
    [
        # 24576 / 192 = 128 tiles: 227 KB without 12 KB of Y hold three stages of 56 KB
        (INT4, 16, 24576, 4096, options(192, 16, 4, 3)),
        # 4096 / 64 = 64 tiles in one wave: two slices, nine stages of 24 KB fit, eight are in pairs
        (INT4, 16, 4096, 4096, options(64, 16, 4, 8, K_SLICES=2)),
        (INT4, 1, 4096, 4096, options(64, 8, 4, 8, K_SLICES=2)),
        # K beyond 6144: 32 tiles of 128 channels, each in 128 / 32 units
        (INT4, 16, 4096, 12288, options(128, 16, 4, 5, SPLIT=4)),
        # 512 / 128 = 4 tiles could have 32 units, but 8 are the most; and K of 1024 has two stages of 512
        (INT4, 16, 512, 4096, options(128, 16, 4, 5, SPLIT=8)),
        (INT4, 16, 512, 1024, options(128, 16, 4, 5, SPLIT=2)),
        # 97 tiles of 128 channels are more than half a wave; 65 tiles of 192 are no whole one
        (INT4, 64, 12416, 4096, options(128, 64, 2, 5)),
        (INT4, 64, 4096, 12288, options(64, 64, 2, 8, SPLIT=2)),
        (INT8, 16, 4096, 4096, options(128, 16, 2, 5, SPLIT=4)),
        (INT8, 64, 4096, 4096, options(128, 64, 1, 8, SPLIT=4)),
        # of many tokens the least of waves x microseconds: 32 x 4 tiles of 128 x 64 are one of 7.4, 22 x 4 of 192 x 64
        # one of 10.2; 64 x 2 of 192 x 128 one of 16.4, 96 x 4 of 128 x 64 three
        (INT4, 256, 4096, 4096, options(128, 64, 2, 4)),
        (INT8, 256, 4096, 4096, options(128, 64, 2, 4)),
        (INT4, 256, 12288, 4096, options(192, 128, 1, 4)),
        # 32 x 2 tiles in two parts are a wave: 8.5 x 3 / 2 + 3.5 + 1.6, against 25.5 whole
        (INT8, 128, 4096, 12288, options(128, 64, 2, 4, SPLIT=2)),
        # 22 x 5 tiles of 192 x 64 are a wave, 32 x 5 of 128 x 64 two; for 448 tokens 22 x 7 are two,
        # and 32 x 4 of 128 x 128 one of 12.5
        (INT4, 320, 4096, 4096, options(192, 64, 1, 4)),
        (INT4, 448, 4096, 4096, options(128, 128, 1, 4)),
        # 128 x 2 tiles of 192 x 192 are two waves, 49.0; 128 x 3 of 192 x 128 three, 49.2; 64 x 2 of 192 x 192 are one,
        # 24.5, where 64 x 3 of 192 x 128 are two
        (INT4, 384, 24576, 4096, options(192, 192, 1, 4)),
        (INT4, 384, 12288, 4096, options(192, 192, 1, 4)),
        (INT8, 384, 12288, 4096, options(192, 192, 1, 3)),
        # in bytes two waves of 29.5 are longer than three of 18.0
        (INT8, 384, 24576, 4096, options(192, 128, 1, 4)),
        # what two units would share is no tile of 192 tokens: 22 x 2 tiles, a third of a wave
        (INT4, 384, 4096, 12288, options(192, 64, 1, 4)),
        # 192 x 4 tiles of 128 x 256 are six waves, 129; 128 x 8 of 192 x 128 eight, 131.2
        (INT4, 1024, 24576, 4096, options(128, 256, 1, 4)),
        # 64 tiles, two CTAs on each of 132 multiprocessors: 264 / 64 units; 264 and more tiles: three CTAs
        (NIBBLES, 16, 4096, 4096, options(64, 16, 2, 6, SPLIT=4, CTAS_PER_SM=2)),
        (NIBBLES, 16, 264 * 64, 4096, options(64, 16, 2, 6, CTAS_PER_SM=2)),
        (NIBBLES, 16, 265 * 64, 4096, options(64, 16, 2, 4, CTAS_PER_SM=3)),
        (NIBBLES, 64, 4096, 4096, options(64, 64, 1, 4, SPLIT=4, CTAS_PER_SM=2)),
        (PLANES, 16, 4096, 4096, options(64, 16, 4, 3, SPLIT=4, CTAS_PER_SM=2)),
        (PLANES, 32, 4096, 4096, options(64, 32, 2, 4, SPLIT=4, CTAS_PER_SM=2)),
        (PLANES, 64, 4096, 4096, options(64, 64, 2, 4, SPLIT=2, K_SLICES=2)),
        # 200 x 2 tiles are three waves, 201 x 2 more
        (NIBBLES, 256, 200 * 64, 4096, options(64, 128, 1, 4, K_SLICES=2)),
        (NIBBLES, 256, 201 * 64, 4096, options(128, 128, 1, 4)),
        (PLANES, 256, 200 * 64, 4096, options(64, 128, 2, 3)),
        (PLANES, 4096, 4096, 4096, options(128, 128, 2, 2)),
    ],
)
def test_each_rule(kind: Any, tokens: int, channels: int, columns: int, expected: dict[str, Any]) -> None:
    assert heuristics.hopper_tiles(kind, tokens, channels, columns) == expected


@pytest.mark.parametrize(
    ("kind", "rows", "expected"),
    [
        # a quarter of 228 KB without 1 KB of the CTA and 2 KB of Y: 54 KB, three stages of 2 x (64 + 8) x 128 bytes
        (INT8, 8, options(64, 8, 2, 3, CTAS_PER_SM=4)),
        (INT8, 32, options(64, 32, 2, 2, CTAS_PER_SM=4)),
        (INT4, 8, options(128, 8, 4, 3, CTAS_PER_SM=2)),
        (NIBBLES, 16, options(64, 16, 4, 2, CTAS_PER_SM=3)),
        (INT8, 128, options(256, 128, 1, 4)),
        (NIBBLES, 128, options(128, 128, 1, 5)),
    ],
)
def test_rules_of_grouped_gemms(kind: Any, rows: int, expected: dict[str, Any]) -> None:
    assert heuristics.hopper_expert_tiles(kind, rows, 1024, 2048) == expected


def test_what_is_chosen_fits_a_multiprocessor() -> None:
    kinds = [INT4, INT8, *(HopperFormat(bits, group, 16, False, False) for bits in (2, 3, 4) for group in (0, 128))]
    sizes = product(
        kinds, (1, 16, 17, 33, 64, 65, 129, 257, 4096), (200, 4096, 12288, 19208, 151936), (128, 6144, 18944)
    )
    for kind, tokens, channels, columns in sizes:
        chosen = heuristics.hopper_tiles(kind, tokens, channels, columns)
        weights = chosen["BLOCK_N"] * (16 * kind.w_bits + (2 if kind.w_group else 0))
        stage = chosen["K_BLOCKS"] * (weights + chosen["BLOCK_M"] * (256 if kind.a_bits == 16 else 128))
        assert chosen["CTAS_PER_SM"] * (chosen["STAGES"] * stage + 1024) <= 228 * 1024
        assert chosen["STAGES"] >= 2 * chosen["K_SLICES"]
        assert chosen["STAGES"] % chosen["K_SLICES"] == 0
        assert chosen["SPLIT"] <= max(1, columns // (128 * chosen["K_BLOCKS"]))
        threads = 128 * (chosen["BLOCK_N"] // 64 * chosen["K_SLICES"] + 1)
        assert chosen["CTAS_PER_SM"] * threads * heuristics.hopper_registers(chosen) <= 65536


@pytest.mark.parametrize(
    ("tokens", "block_m"), [(1, 16), (16, 16), (17, 32), (32, 32), (33, 64), (5000, 64)]
)  # fmt: skip
def test_portable_tiles_take_no_more_rows_than_there_are_tokens(tokens: int, block_m: int) -> None:
    assert heuristics.portable_tiles(tokens)["BLOCK_M"] == block_m


def test_float_formats_take_the_tensor_cores_of_their_own_where_there_are_some() -> None:
    assert [heuristics.fp8_tiles(16, capability)["NATIVE"] for capability in (0, 80, 89, 90)] == [
        False,
        False,
        True,
        True,
    ]
    assert [heuristics.fp4_tiles(16, capability)["NATIVE"] for capability in (0, 90, 100)] == [False, False, True]
    assert [heuristics.fp4_tiles(16, capability)["BLOCK_N"] for capability in (90, 100)] == [64, 128]


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ((32, 32, 1024, 128), (32, 256, 1, 4, 8)),  # a quarter of a head's keys for each of 128 programs
        ((32, 28, 1000, 128), (32, 256, 1, 4, 8)),
        ((16, 32, 1024, 64), (16, 256, 1, 4, 4)),  # 64 channels are one warpgroup's
        ((32, 32, 384, 128), (32, 128, 1, 3, 4)),  # of 384 keys three programs have 128 each
        ((1, 32, 40, 128), (16, 64, 1, 1, 4)),
        ((32, 32, 2048, 128), (32, 64, 4, 4, 4)),  # 512 keys of a program come in blocks
        ((64, 32, 1024, 128), (64, 64, 4, 4, 4)),  # as do those of more than 32 queries
        ((32, 256, 1024, 128), (32, 64, 3, 1, 4)),  # two programs on each multiprocessor
    ],
)
def test_attention_on_hopper_fills_the_gpu(sizes: tuple[int, ...], expected: tuple[int, ...]) -> None:
    """queries, heads, keys, width: ROWS, BLOCK, STAGES, SPLIT and warps on 132 multiprocessors."""
    tiles = device_module("attention_heuristics").hopper_attention_tiles(*sizes, 132)
    assert tuple(tiles[name] for name in ("ROWS", "BLOCK", "STAGES", "SPLIT", "num_warps")) == expected
