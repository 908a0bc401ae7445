"""Measured tile sizes of the matrix products, by GPU: hints that decide the speed, never the result.

A file holds {"gpu": ..., "entries": {key: {"options": {...}, "microseconds": ...}}}. The key names kernel, N, K, the
bucket of M and the version of Triton, since a compiler may turn another choice into the fastest. Files ship in
`codegen/tuned`; what `qspec tune` measures here lies in the user's cache and comes first. Where no entry fits, the
kernel's file chooses by itself.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from qspec import resources
from qspec.catalog import HOPPER_BLOCK, GemmKernel
from qspec.errors import InputError
from qspec.files import write_whole
from qspec.kernels.generate import cache_folder

SMALLEST, LARGEST = 16, 8192  # buckets of M: powers of two between these
SHARED = 227 * 1024  # bytes of shared memory that a block may take on compute capability 9.0
STAGES_OF_FEW = (((2, 3), (4, 3)), ((1, 3), (2, 3)))  # blocks and stages: up to 16 tokens, up to 64
STAGES_OF_MANY = ((1, 3), (1, 4), (2, 2))
Options = dict[str, Any]


def bucket(tokens: int) -> int:
    """The power of two that stands for M: the smallest that is not below it, within limits."""
    return min(max(1 << (tokens - 1).bit_length(), SMALLEST), LARGEST)


def key(kernel: GemmKernel, channels: int, columns: int, tokens: int, triton: str) -> str:
    """Such as `gemm_w4_sym_a4 12288x4096 M64 triton 3.6.0`."""
    return f"{kernel.name} {channels}x{columns} M{bucket(tokens)} triton {triton}"


def slug(gpu: str) -> str:
    """A GPU's name as a file's: `NVIDIA H100 80GB HBM3` -> `nvidia_h100_80gb_hbm3`."""
    return re.sub(r"[^a-z0-9]+", "_", gpu.lower()).strip("_")


def own_file(gpu: str) -> Path:
    """Where `qspec tune` writes what it measures on this machine."""
    return cache_folder().parent / "tuned" / f"{slug(gpu)}.json"


def options_for(kernel: GemmKernel, channels: int, columns: int, tokens: int, device: torch.device) -> Options | None:
    """The fastest measured options for this product on this device, or None."""
    if device.type != "cuda":
        return None
    import triton

    entry = _table(torch.cuda.get_device_name(device)).get(key(kernel, channels, columns, tokens, triton.__version__))
    return None if entry is None else dict(entry["options"])


def microseconds(gpu: str, kernel: GemmKernel, channels: int, columns: int, tokens: int) -> float | None:
    """The least measured time of this product on a GPU, whatever the version of Triton; None without an entry."""
    start = key(kernel, channels, columns, tokens, "")
    return min((entry["microseconds"] for name, entry in _table(gpu).items() if name.startswith(start)), default=None)


@lru_cache(maxsize=8)
def _table(gpu: str) -> dict[str, Any]:
    entries: dict[str, Any] = {}
    for path in (resources.codegen() / "tuned" / f"{slug(gpu)}.json", own_file(gpu)):
        if path.is_file():
            entries |= read(path)
    return entries


def read(path: Path) -> dict[str, Any]:
    """The entries of a file. Raises InputError where it is none."""
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))["entries"]
        return {
            name: {"options": dict(entry["options"]), "microseconds": float(entry["microseconds"])}
            for name, entry in entries.items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        hint = "delete it, or run qspec tune again"
        raise InputError("not a table of tuned kernels", where=str(path), hint=hint) from error


def write(path: Path, gpu: str, entries: dict[str, Any]) -> None:
    """Writes the entries and those that the file had; the table of this process forgets what it knew."""
    known = read(path) if path.is_file() else {}
    text = json.dumps({"gpu": gpu, "entries": dict(sorted({**known, **entries}.items()))}, indent=1)
    write_whole(path, text + "\n")
    _table.cache_clear()


def candidates(kernel: GemmKernel, columns: int, tokens: int) -> Iterator[Options]:
    """Options worth a measurement on compute capability 9.0; none where the kernel has no form of its own for it."""
    if not kernel.hopper or columns % HOPPER_BLOCK:
        return
    few = tokens <= 64
    for block_n, block_m, warps in _tiles(kernel, tokens):
        for blocks, stages in STAGES_OF_FEW[tokens > 16] if few else STAGES_OF_MANY:
            for split in (1, 2, 4) if few else (1, 2) if tokens <= 256 else (1,):
                if split * blocks > columns // HOPPER_BLOCK:
                    continue
                shape: Options = {
                    "BLOCK_N": block_n,
                    "BLOCK_M": block_m,
                    "PB": blocks,
                    "STAGES": stages,
                    "SPLIT": split,
                }
                for spread in _spreads(kernel, few):
                    options = {**shape, "SPLIT": split, **spread, "num_warps": warps}
                    if _shared(kernel, options) <= SHARED:
                        yield options


def _tiles(kernel: GemmKernel, tokens: int) -> list[tuple[int, int, int]]:
    """Output channels and tokens of a tile, and warps; a warp's threads hold no more than 4096 sums."""
    if tokens <= 64:
        block_m = next(size for size in (16, 32, 64) if tokens <= size)
        return [(64, block_m, 4), (128, block_m, 8)]
    if tokens <= 256:
        return [(128, 128, 8), (64, 128, 4)]
    return [(128, 128, 8)] if kernel.activation_bits == 16 else [(128, 256, 8), (128, 128, 8)]


def _spreads(kernel: GemmKernel, few: bool) -> list[Options]:
    """Whether integer operands come from shared memory both: 8-bit ones do, few tokens gain nothing by it at 4 bits."""
    if kernel.activation_bits == 16:
        return [{}]
    if kernel.weight_bits == 8:
        return [{"SPREAD": True}]
    return [{"SPREAD": False}] if few else [{"SPREAD": False}, {"SPREAD": True}]


def _shared(kernel: GemmKernel, options: Options) -> int:
    """Bytes of shared memory that the buffers take."""
    rows = options["BLOCK_N"] * 16 * kernel.weight_bits
    tokens = options["BLOCK_M"] * (256 if kernel.activation_bits == 16 else 128)
    spread = options.get("SPREAD") and kernel.weight_bits == 4
    return int(options["PB"] * (options["STAGES"] * (rows + tokens) + (2 * options["BLOCK_N"] * 128 if spread else 0)))
