"""Tensors of sealed safetensors files: hashed by all cores, and put where they are wanted meanwhile.

Files are mapped: on a CPU a weight lies where the page cache has it; to a GPU it goes through pinned memory. A hash is
one call for a whole file, and a copy one for some megabytes: threads that need Python's lock in between would wait for
whatever else runs, such as the import of the tokenizer's library.
"""

from __future__ import annotations

import hashlib
import mmap
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from itertools import cycle
from pathlib import Path
from threading import local
from typing import ParamSpec, TypeVar

import torch
from safetensors.torch import load_file
from torch import Tensor

from qspec.artifact import changed, require_there
from qspec.files import cores, open_input, read_errors

COPIERS = 4  # threads that fill pinned memory
PIECE = 16 << 20  # bytes of pinned memory; each of them has two
SMALL = 1 << 20  # bytes of a tensor that is copied without

P = ParamSpec("P")
T = TypeVar("T")


def read_sealed(files: Mapping[Path, str], device: torch.device, kept: str) -> dict[str, Tensor]:
    """name -> tensor of safetensors files, on `device`; on the CPU where `kept` is a part of the name.

    files: with their sha256. Errors: InputError of the first file that is missing, was changed or cannot be read.
    """
    require_there(files)
    largest_first = sorted(files, key=lambda path: path.stat().st_size, reverse=True)  # a hash is one thread's work
    read = _Reader(device, kept) if device.type == "cuda" else load_file
    tensors: dict[str, Tensor] = {}
    with ThreadPoolExecutor(cores()) as hashing, ThreadPoolExecutor(COPIERS) as copying:
        try:
            hashes = {path: hashing.submit(sha256_mapped, path) for path in largest_first}
            reads = {path: copying.submit(read, path) for path in largest_first}
            for path, digest in files.items():
                with read_errors(path):
                    if hashes[path].result() != digest:
                        raise changed(path)
                    tensors.update(reads[path].result())
        finally:
            for pool in (hashing, copying):
                pool.shutdown(cancel_futures=True)
    return tensors


def on_this_stream(call: Callable[P, T], device: torch.device) -> Callable[P, T]:
    """The call as another thread makes it: on this thread's GPU and stream, which a new thread does not know."""
    here = torch.cuda.stream(torch.cuda.current_stream()) if device.type == "cuda" else nullcontext()

    def made(*args: P.args, **kwargs: P.kwargs) -> T:
        with here:
            return call(*args, **kwargs)

    return made


def sha256_mapped(path: Path) -> str:
    """Hex digest of a file's content, in one call."""
    with open_input(path) as stream:
        if not path.stat().st_size:  # which cannot be mapped
            return hashlib.sha256().hexdigest()
        with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return hashlib.sha256(content).hexdigest()


class _Reader:
    """Reads files onto a GPU, for the current stream."""

    def __init__(self, device: torch.device, kept: str) -> None:
        self._device, self._kept, self._stream = device, kept, torch.cuda.current_stream(device)
        self._own = local()

    def __call__(self, path: Path) -> dict[str, Tensor]:
        with torch.cuda.stream(self._stream):
            return {n: t if self._kept in n else self._placed(t) for n, t in load_file(path).items()}

    def _placed(self, tensor: Tensor) -> Tensor:
        if tensor.nbytes < SMALL:
            return tensor.to(self._device)
        placed = torch.empty_like(tensor, device=self._device)
        source, target = (whole.view(-1).view(torch.uint8) for whole in (tensor, placed))
        for start in range(0, tensor.nbytes, PIECE):
            piece = source[start : start + PIECE]
            room, copied = next(self._rooms())
            copied.synchronize()  # what it held before
            target[start : start + PIECE].copy_(room[: len(piece)].copy_(piece), non_blocking=True)
            copied.record()
        return placed

    def _rooms(self) -> Iterator[tuple[Tensor, torch.cuda.Event]]:
        """This thread's two, in turn."""
        if not hasattr(self._own, "rooms"):
            rooms = [torch.empty(PIECE, dtype=torch.uint8, pin_memory=True) for _ in range(2)]
            self._own.rooms = cycle([(room, torch.cuda.Event()) for room in rooms])  # type: ignore[no-untyped-call]
        found: Iterator[tuple[Tensor, torch.cuda.Event]] = self._own.rooms
        return found
