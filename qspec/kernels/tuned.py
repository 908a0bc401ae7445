"""Measured choices for the matrix products, by GPU: hints, which decide the speed, and of sums of floats the rounding.

A file holds {"gpu": ..., "entries": {key: {"options": {...}, "microseconds": ...}}}. The key names kernel, N, K, the
bucket of M and the version of Triton, since a compiler may turn another choice into the fastest. Files ship in
`codegen/tuned`; what `qspec tune` measures here lies in the user's cache and comes first. Where no entry fits, the
kernel's file chooses by itself; entries of an older form of the kernels, with other options, are passed over.

Options are tile sizes (`NAMES`), or `CUBLAS`: the product is cuBLAS's, as the kernel's file says at its top. Integer
products are the same bits by any tile sizes. Others add float32 in another order; and for `CUBLAS` each weight that
meets 16-bit inputs is rounded to their dtype first, which no tile size does.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from qspec import resources
from qspec.catalog import HOPPER_BLOCK, GemmKernel
from qspec.errors import InputError
from qspec.files import write_whole
from qspec.kernels.generate import cache_folder

SMALLEST, LARGEST = 8, 8192  # buckets of M: powers of two between these
SHARED = 228 * 1024  # bytes of shared memory of a multiprocessor of compute capability 9.0; a program takes 1 KB more
LEAST_STAGES, MOST_STAGES = 2, 12
SPLITS = (1, 2, 3, 4, 6)
MULTIPROCESSORS = 132  # of an H100 and an H200
NAMES = frozenset(("BLOCK_N", "BLOCK_M", "PB", "STAGES", "SPLIT", "SHARE", "TEAMS"))  # see `macros/hopper.jinja`
Options = dict[str, Any]
CUBLAS: Options = {"CUBLAS": 1}
CUBLAS_FROM = 256  # tokens from which cuBLAS is worth a measurement


def bucket(tokens: int) -> int:
    """The power of two that stands for M: the smallest that is not below it, within limits."""
    return min(max(1 << (tokens - 1).bit_length(), SMALLEST), LARGEST)


def key(kernel: GemmKernel, channels: int, columns: int, tokens: int, triton: str) -> str:
    """Such as `gemm_w4_sym_a4 12288x4096 M64 triton 3.6.0`; channels: rows of W, gated or not."""
    return f"{replace(kernel, gated=False).name} {channels}x{columns} M{bucket(tokens)} triton {triton}"


def slug(gpu: str) -> str:
    """A GPU's name as a file's: `NVIDIA H100 80GB HBM3` -> `nvidia_h100_80gb_hbm3`."""
    return re.sub(r"[^a-z0-9]+", "_", gpu.lower()).strip("_")


def own_file(gpu: str) -> Path:
    """Where `qspec tune` writes what it measures on this machine."""
    return cache_folder().parent / "tuned" / f"{slug(gpu)}.json"


def options_for(kernel: GemmKernel, channels: int, columns: int, tokens: int, device: torch.device) -> Options | None:
    """The fastest measured options for this product on this device, or None.

    Of a gated product those of the same one without a gate; of `CUBLAS`, which would take it a kernel more, its file
    decides.
    """
    if device.type != "cuda":
        return None
    import triton

    table = _table(torch.cuda.get_device_name(device))
    for count in _counts(tokens):
        entry = table.get(key(kernel, channels, columns, count, triton.__version__))
        if entry and _serves(entry, kernel):
            return dict(entry["options"])
    return None


def microseconds(gpu: str, kernel: GemmKernel, channels: int, columns: int, tokens: int) -> float | None:
    """The least measured time of this product on a GPU, whatever the version of Triton; None without an entry."""
    for count in _counts(tokens):
        start = key(kernel, channels, columns, count, "")
        entries = [entry for name, entry in _table(gpu).items() if name.startswith(start) and _serves(entry, kernel)]
        if entries:
            return float(min(entry["microseconds"] for entry in entries))
    return None


def _counts(tokens: int) -> tuple[int, ...]:
    """Tokens whose entries serve: those of the smallest bucket may take the next one's tiles."""
    return (tokens,) if tokens > SMALLEST else (tokens, 2 * SMALLEST)


def _serves(entry: dict[str, Any], kernel: GemmKernel) -> bool:
    """Whether the kernel takes an entry of its key."""
    return not (kernel.gated and entry["options"] == CUBLAS)


def of_this_form(options: Options) -> bool:
    """Whether options are tile sizes as the kernels take them now, or `CUBLAS`."""
    return set(options) == NAMES or options == CUBLAS


@lru_cache(maxsize=8)
def _table(gpu: str) -> dict[str, Any]:
    entries: dict[str, Any] = {}
    for path in (resources.codegen() / "tuned" / f"{slug(gpu)}.json", own_file(gpu)):
        if path.is_file():
            entries |= {name: entry for name, entry in read(path).items() if of_this_form(entry["options"])}
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


def candidates(kernel: GemmKernel, channels: int, columns: int, tokens: int) -> Iterator[Options]:
    """Options worth a measurement on compute capability 9.0; none where the kernel has no form of its own for it.

    Stages are as many as shared memory holds, up to a dozen; a tile's channels are split where all parts fit at once.
    """
    if not kernel.hopper or columns % HOPPER_BLOCK:
        return
    if kernel.cublas and tokens >= CUBLAS_FROM:
        yield dict(CUBLAS)
    for block_n, block_m, blocks, share, teams in _tiles(kernel, tokens):
        options = {"BLOCK_N": block_n, "BLOCK_M": block_m, "PB": blocks, "SHARE": share, "TEAMS": teams}
        stages = min(MOST_STAGES, (SHARED // share - 1024 - _sent(options)) // _stage(kernel, options))
        stages -= stages % teams  # a stage is always the same team's
        parts = MULTIPROCESSORS * share // (-(-channels // block_n) * -(-tokens // block_m))
        for split in SPLITS:
            fits = split == 1 or (split <= parts and split * blocks * teams <= columns // HOPPER_BLOCK)
            if stages >= LEAST_STAGES * teams and fits:
                yield {**options, "STAGES": stages, "SPLIT": split}


def _tiles(kernel: GemmKernel, tokens: int) -> Iterator[tuple[int, int, int, int, int]]:
    """Output channels and tokens of a tile, blocks of a stage, programs on a multiprocessor, teams of a program."""
    floating = kernel.activation_bits == 16
    least = 2 if floating and kernel.weight_bits < 4 else 1  # a plane's box is 32 bytes wide or more
    if tokens > 64:
        yield (128, 128, least, 1, 1)
        if tokens <= 256:
            yield from ((64, 128, least, 1, teams) for teams in ((2, 3) if least == 1 else (1,)))
        if not floating:  # which has 4096 sums of a group beside those of a tile
            yield from ((128, 256, 1, 1, 1), (192, 128, 1, 1, 1))
        return
    block_m = next(size for size in (8, 16, 32, 64) if tokens <= size)
    for blocks in (2, 4) if tokens <= 16 else (1, 2) if least == 1 else (2,):
        yield from ((64, block_m, blocks, share, 1) for share in (1, 2, 3))
        yield from ((64, block_m, blocks, share, 2) for share in (1, 2) if (block_m, share) != (64, 2))
        yield (64, block_m, blocks, 1, 3)
        yield from ((128, block_m, blocks, share, 1) for share in (1, 2) if (block_m, share) != (64, 2))
        if not floating:  # whose scales come in boxes of a power of two
            yield (192, block_m, blocks, 1, 1)


def _stage(kernel: GemmKernel, options: Options) -> int:
    """Bytes of shared memory that a stage takes."""
    floating = kernel.activation_bits == 16
    weights = options["BLOCK_N"] * (16 * kernel.weight_bits + (2 if floating and kernel.weight_group else 0))
    return int(options["PB"] * (weights + options["BLOCK_M"] * (256 if floating else 128)))


def _sent(options: Options) -> int:
    """Bytes of shared memory that outputs take on their way, of each channel no more than 128, and sums of teams."""
    sent, sums = min(128, 4 * options["BLOCK_M"]), 4 * options["BLOCK_M"] * (options["TEAMS"] - 1)
    return int(options["BLOCK_N"] * (sent + sums))
