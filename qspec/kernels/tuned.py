"""Measured choices for the GEMMs, by GPU: hints, which decide the speed, and of sums of floats the rounding.

A file holds {"gpu": ..., "entries": {key: {"options": {...}, "microseconds": ...}}}. The key names kernel, N, K, the
bucket of M and the version of Triton, since a compiler may turn another choice into the fastest: the entry of the
version that runs is taken, else that of the nearest one, which costs speed only. Files ship in `codegen/tuned`; what
`qspec tune` measures here lies in the user's cache and, of one version, comes first. Entries that the kernel's file
does not take (`accepts`), such as those of an older form of the kernels, are passed over; where none is left, the file
chooses by itself.

Options are tile sizes (`NAMES`), or `CUBLAS`: the GEMM is cuBLAS's, as the kernel's file says at its top. Integer
GEMMs are the same bits by any tile sizes. Others add float32 in another order; and for `CUBLAS` each weight that
meets 16-bit inputs is rounded to their dtype first, which no tile size does.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qspec import resources
from qspec.catalog import HOPPER_BLOCK, GemmKernel
from qspec.errors import InputError
from qspec.files import read_input, require_file, write_whole
from qspec.kernels.generate import cache_folder

if TYPE_CHECKING:
    import torch

SMALLEST, LARGEST = 8, 8192  # buckets of M: powers of two between these
FEW = 64  # tokens of the least tile of many; up to here a tile holds all of them
SHARED = 228 * 1024  # bytes of shared memory of a multiprocessor of compute capability 9.0; a program takes 1 KB more
REGISTERS = 65536  # of a multiprocessor
LEAST_STAGES, MOST_STAGES = 2, 12
SPLITS = (1, 2, 3, 4, 6)
ROWS, WARPGROUPS = 64, 3  # output channels of a warpgroup; those that a program has beside the one that asks for tiles
MULTIPROCESSORS = 132  # of an H100 and an H200
NAMES = frozenset(("BLOCK_N", "BLOCK_M", "K_BLOCKS", "STAGES", "SPLIT", "CTAS_PER_SM", "K_SLICES"))  # see `HopperGemm`
Options = dict[str, Any]
CUBLAS: Options = {"CUBLAS": 1}
CUBLAS_FROM = 256  # tokens from which cuBLAS is worth a measurement
KEY = re.compile(r"(.+) triton (\d\S*)")
RELEASE = re.compile(r"(\d+)(?:\.(\d+))?(?:\.(\d+))?")


def bucket(tokens: int) -> int:
    """The power of two that stands for M: the smallest that is not below it, within limits."""
    return min(max(1 << (tokens - 1).bit_length(), SMALLEST), LARGEST)


def key(kernel: GemmKernel, channels: int, columns: int, tokens: int, triton: str) -> str:
    """Such as `gemm_w4_sym_a4 12288x4096 M64 triton 3.6.0`; channels: rows of W, gated or not."""
    return f"{_product(kernel, channels, columns, tokens)} triton {triton}"


def _product(kernel: GemmKernel, channels: int, columns: int, tokens: int) -> str:
    return f"{replace(kernel, gated=False, activation='silu').name} {channels}x{columns} M{bucket(tokens)}"


def slug(gpu: str) -> str:
    """A GPU's name as a file's: `NVIDIA H100 80GB HBM3` -> `nvidia_h100_80gb_hbm3`."""
    return re.sub(r"[^a-z0-9]+", "_", gpu.lower()).strip("_")


def own_file(gpu: str) -> Path:
    """Where `qspec tune` writes what it measures on this machine."""
    return cache_folder().parent / "tuned" / f"{slug(gpu)}.json"


def options_for(kernel: GemmKernel, channels: int, columns: int, tokens: int, device: torch.device) -> Options | None:
    """The fastest measured options for this GEMM on this device, or None.

    Of many quantized tokens only those of a bucket that they nearly fill: fewer leave tiles empty, and make other waves
    of them. Of a gated GEMM those of the same one without a gate; of `CUBLAS`, which would take it a kernel more, its
    file decides.
    """
    fills = tokens <= FEW or kernel.activation_bits == 16 or bucket(tokens) - tokens < FEW
    if device.type != "cuda" or not fills:
        return None
    import torch

    entry = _entry(torch.cuda.get_device_name(device), kernel, channels, columns, bucket(tokens))
    return None if entry is None else dict(entry["options"])


def microseconds(gpu: str, kernel: GemmKernel, channels: int, columns: int, tokens: int) -> float | None:
    """The measured time of this GEMM on a GPU, of as many tokens as its bucket stands for; None without an entry."""
    entry = _entry(gpu, kernel, channels, columns, bucket(tokens))
    return None if entry is None else float(entry["microseconds"])


@lru_cache(maxsize=4096)
def _entry(gpu: str, kernel: GemmKernel, channels: int, columns: int, size: int) -> dict[str, Any] | None:
    """Of the nearest version of Triton. size: the bucket of M; the smallest may take the next one's tiles."""
    table = _table(gpu)
    for count in (size,) if size > SMALLEST else (size, 2 * SMALLEST):
        of_version = table.get(_product(kernel, channels, columns, count), {})
        found = {v: entry for v, entry in of_version.items() if accepts(kernel, columns, entry["options"])}
        if found:
            chosen: dict[str, Any] = found[nearest(found, _running())]
            return chosen
    return None


def nearest(versions: Iterable[str], running: str | None) -> str:
    """The version itself, or the one of least difference, major before minor before patch; of two so near, and where
    nothing runs, the later."""

    def distance(version: str) -> tuple[bool, list[int], list[int], str]:
        release = _release(version)
        apart = [] if running is None else [abs(a - b) for a, b in zip(release, _release(running), strict=True)]
        return version != running, apart, [-number for number in release], version

    return min(versions, key=distance)


def _release(version: str) -> list[int]:
    """Major, minor and patch: 3.6.0+git8a1c -> 3, 6, 0."""
    match = RELEASE.match(version)
    assert match is not None
    return [int(number or 0) for number in match.groups()]


def _running() -> str | None:
    """The version of Triton here; None where there is none, which only asks what others measured.

    Triton itself is not imported for that: it would take a tenth of the time of a plan.
    """
    if "triton" in sys.modules:
        version: str = sys.modules["triton"].__version__
        return version
    try:
        return metadata.version("triton")
    except metadata.PackageNotFoundError:
        return None


@lru_cache(maxsize=8)
def _table(gpu: str) -> dict[str, dict[str, dict[str, Any]]]:
    """Product -> version of Triton -> entry."""
    entries: dict[str, dict[str, dict[str, Any]]] = {}
    for path in (resources.codegen() / "tuned" / f"{slug(gpu)}.json", own_file(gpu)):
        for name, entry in (read(path) if path.is_file() else {}).items():
            if match := KEY.fullmatch(name):
                entries.setdefault(match[1], {})[match[2]] = entry
    return entries


def read(path: Path) -> dict[str, Any]:
    """The entries of a file. Raises InputError where it is none."""
    try:
        entries = json.loads(read_input(path))["entries"]
        return {
            name: {"options": dict(entry["options"]), "microseconds": float(entry["microseconds"])}
            for name, entry in entries.items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        hint = "delete it, or run qspec tune again"
        raise InputError("not a table of tuned kernels", where=str(path), hint=hint) from error


def require_table(path: Path) -> None:
    """Before long work: raises InputError where `write` could not write there, or would meet a file of another kind."""
    require_file(path)
    if path.exists():
        read(path)


def write(path: Path, gpu: str, entries: dict[str, Any]) -> None:
    """Writes the entries and those that the file had; the table of this process forgets what it knew."""
    known = read(path) if path.is_file() else {}
    text = json.dumps({"gpu": gpu, "entries": dict(sorted({**known, **entries}.items()))}, indent=1)
    write_whole(path, text + "\n")
    _table.cache_clear()
    _entry.cache_clear()


def candidates(kernel: GemmKernel, channels: int, columns: int, tokens: int) -> Iterator[Options]:
    """Options worth a measurement on compute capability 9.0; none where the kernel has no form of its own for it.

    Stages are as many as shared memory holds, up to a dozen; a tile's channels are split where all parts fit at once.
    """
    if not kernel.hopper or columns % HOPPER_BLOCK:
        return
    if kernel.cublas and tokens >= CUBLAS_FROM:
        yield dict(CUBLAS)
    for block_n, block_m, blocks, share, slices in _tiles(kernel, tokens):
        options = {"BLOCK_N": block_n, "BLOCK_M": block_m, "K_BLOCKS": blocks, "CTAS_PER_SM": share, "K_SLICES": slices}
        stages = min(MOST_STAGES, (SHARED // share - 1024 - _sent(kernel, options)) // _stage(kernel, options))
        stages -= stages % slices  # a stage is always the same slice's
        parts = MULTIPROCESSORS * share // (-(-channels // block_n) * -(-tokens // block_m))
        for split in SPLITS:
            whole = {**options, "STAGES": stages, "SPLIT": split}
            if (split == 1 or split <= parts) and accepts(kernel, columns, whole):
                yield whole


def accepts(kernel: GemmKernel, columns: int, options: Options) -> bool:
    """Whether the kernel's file can run a GEMM over K `columns` with these options: it has such a form, and a
    multiprocessor has the shared memory and the registers for CTAS_PER_SM of its programs.
    """
    if options == CUBLAS:
        return kernel.cublas and not kernel.gated
    if not kernel.hopper or columns % HOPPER_BLOCK or set(options) != NAMES:
        return False
    if any(type(value) is not int or value < 1 for value in options.values()):
        return False
    floating = kernel.activation_bits == 16
    block_n, block_m, blocks, slices = (options[name] for name in ("BLOCK_N", "BLOCK_M", "K_BLOCKS", "K_SLICES"))
    stages, split, share = options["STAGES"], options["SPLIT"], options["CTAS_PER_SM"]
    groups = block_n // ROWS * slices  # warpgroups that multiply
    made: bool = (
        block_n in (64, 128) + (() if floating else (192,))  # scales come in boxes of a power of two
        and (block_m in (8, 16, 32, 64, 128, 256) or (block_m == 192 and split == 1 and not floating))
        and blocks in (1, 2, 4)
        and not (floating and kernel.weight_bits < 4 and blocks == 1)  # a plane's box is 32 bytes wide or more
        and (slices == 1 or block_n == ROWS)
        and groups <= WARPGROUPS
        and stages >= LEAST_STAGES * slices
        and stages % slices == 0
        and (split == 1 or split * blocks * slices <= columns // HOPPER_BLOCK)
    )
    if not made:
        return False
    sums = block_m // 2 * (2 if floating else 1)  # of a thread; of floats a group's beside those of the tile
    taken = stages * _stage(kernel, options) + _sent(kernel, options) + 1024
    fits: bool = share * taken <= SHARED and sums < REGISTERS // (share * 128 * (groups + 1))
    return fits


def _tiles(kernel: GemmKernel, tokens: int) -> Iterator[tuple[int, int, int, int, int]]:
    """Output channels and tokens of a tile, blocks of a stage, programs on a multiprocessor, slices of a program."""
    floating = kernel.activation_bits == 16
    least = 2 if floating and kernel.weight_bits < 4 else 1  # a plane's box is 32 bytes wide or more
    if tokens > 64:
        yield (128, 128, least, 1, 1)
        if tokens <= 256:
            yield from ((64, 128, least, 1, slices) for slices in ((2, 3) if least == 1 else (1,)))
        if not floating:  # which has 4096 sums of a group beside those of a tile
            yield from ((128, 256, 1, 1, 1), (192, 128, 1, 1, 1), (192, 64, 1, 1, 1), (128, 64, 2, 1, 1))
            if tokens > 128:
                yield (192, 192, 1, 1, 1)
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
    return int(options["K_BLOCKS"] * (weights + options["BLOCK_M"] * (256 if floating else 128)))


def _sent(kernel: GemmKernel, options: Options) -> int:
    """Bytes of shared memory that outputs take on their way, of each channel no more than 128, or twice as many, and
    sums of slices."""
    double = options["BLOCK_M"] > FEW and kernel.activation_bits < 16
    sent = 256 if double else min(128, 4 * options["BLOCK_M"])
    sums = 4 * options["BLOCK_M"] * (options["K_SLICES"] - 1)
    return int(options["BLOCK_N"] * (sent + sums))
