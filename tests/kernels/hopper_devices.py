"""Kernels of single device functions for compute capability 9.0, which `test_hopper_device.py` runs as PTX."""

from __future__ import annotations

from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon._runtime import GluonASTSource

from tests.kernels.devices import device_module

decode_planes = device_module("hopper_mma_weight_only").decode_planes
decode_low_nibbles = device_module("hopper_mma_weight_only").decode_low_nibbles
decode_high_nibbles = device_module("hopper_mma_weight_only").decode_high_nibbles
tile_of = device_module("hopper_schedule").tile_of
expert_tile_of = device_module("hopper_schedule").expert_tile_of
filled_rows = device_module("hopper_schedule").filled_rows
HopperGemm = device_module("hopper_operands").HopperGemm

WORDS = gl.constexpr(
    gl.DistributedLinearLayout(
        [[0, 1], [0, 2], [8, 0]], [[0, 4], [0, 8], [1, 0], [2, 0], [4, 0]], [[16, 0], [32, 0]], [], [64, 16]
    )
)


@gluon.jit
def planes_kernel(high, low, offset, out, BITS: gl.constexpr, HALF: gl.constexpr, ODD: gl.constexpr):
    row, column = gl.arange(0, 64, gl.SliceLayout(1, WORDS)), gl.arange(0, 16, gl.SliceLayout(0, WORDS))
    cell = row[:, None] * 16 + column[None, :]
    first, second = decode_planes(gl.load(high + cell), gl.load(low + cell), gl.load(offset + cell), BITS, HALF, ODD)
    gl.store(out + cell, first)
    gl.store(out + 1024 + cell, second)


@gluon.jit
def nibbles_kernel(packed, offset, out):
    row, column = gl.arange(0, 64, gl.SliceLayout(1, WORDS)), gl.arange(0, 16, gl.SliceLayout(0, WORDS))
    cell = row[:, None] * 16 + column[None, :]
    w, zero = gl.load(packed + cell), gl.load(offset + cell)
    gl.store(out + cell, decode_low_nibbles(w, zero))
    gl.store(out + 1024 + cell, decode_high_nibbles(w, zero))


@gluon.jit
def tiles_kernel(out, M, N, K, SPLIT: gl.constexpr):
    unit = gl.program_id(0)
    tile, m0, n0, first, last = tile_of(
        unit, HopperGemm(None, None, None, None, M, N, K, 0, None, N, 64, 16, 2, 4, SPLIT, 1)
    )
    gl.store(out + 5 * unit, tile)
    gl.store(out + 5 * unit + 1, m0)
    gl.store(out + 5 * unit + 2, n0)
    gl.store(out + 5 * unit + 3, first)
    gl.store(out + 5 * unit + 4, last)


@gluon.jit
def expert_tiles_kernel(out, tiles, units, columns, K):
    unit = gl.program_id(0)
    g = HopperGemm(None, None, None, None, 0, 0, K, units, tiles, columns, 64, 16, 2, 4, 1, 1)
    _, m0, n0, first, last = expert_tile_of(unit, g)
    gl.store(out + 5 * unit, m0)
    gl.store(out + 5 * unit + 1, n0)
    gl.store(out + 5 * unit + 2, first)
    gl.store(out + 5 * unit + 3, last)
    gl.store(out + 5 * unit + 4, filled_rows(m0, g))


def compiled(kernel: Any, types: dict[str, str], fixed: dict[str, int]) -> Any:
    """types: of parameters; fixed: constants."""
    signature = types | dict.fromkeys(fixed, "constexpr")
    constants = {(kernel.arg_names.index(name),): value for name, value in fixed.items()}
    source = GluonASTSource(kernel, signature, constants)
    return triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"enable_fp_fusion": False})
