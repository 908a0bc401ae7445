"""Tensors of sealed safetensors files: hashed by several cores, and put where they are wanted meanwhile.

Files are mapped: on a CPU a weight lies where the page cache has it; to a GPU it goes through pinned memory. Reading is
few calls, each for many megabytes: behind every call of torch or of the system a thread waits for Python's lock, for
milliseconds while anything else runs, such as the import of the tokenizer's library.
"""

from __future__ import annotations

import hashlib
import mmap
import os
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from functools import partial
from itertools import cycle
from pathlib import Path
from threading import local
from typing import NamedTuple, ParamSpec, TypeVar

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from qspec.artifact import require_there
from qspec.files import cores, open_input, read_errors
from qspec.manifest import changed
from qspec.models.checkpoint import TYPES
from qspec.models.shards import StoredTensor, read_header

COPIERS = 4  # threads that fill pinned memory
PIECE = 64 << 20  # bytes at most of pinned memory, of which each has two; of tensors that are read in one go

Named = Callable[[], dict[str, Tensor]]  # tells the tensors of a file apart: many calls, on another thread than reads
P = ParamSpec("P")
T = TypeVar("T")


def read_sealed(files: Mapping[Path, str], device: torch.device, kept: str) -> Generator[dict[str, Tensor], None, None]:
    """name -> tensor of safetensors files, one after another, on `device`; on the CPU where `kept` is a part of a name.

    files: with their sha256. All are read at once, and each is given out when it and those before it are proven whole.
    Errors: InputError of the first file that is missing, was changed or cannot be read.
    """
    require_there(files)
    largest_first = sorted(files, key=lambda path: path.stat().st_size, reverse=True)  # a hash is one thread's work
    read: Callable[[Path], Named] = partial(partial, load_file)
    if device.type == "cuda":
        read = _Reader(device, kept, min(PIECE, largest_first[0].stat().st_size))
    hashers = max(2, cores() * 2 // 3)  # what reads and imports meanwhile has cores too
    with ThreadPoolExecutor(hashers) as hashing, ThreadPoolExecutor(COPIERS) as copying:
        try:
            hashes = {path: hashing.submit(sha256_mapped, path) for path in largest_first}
            reads = {path: copying.submit(read, path) for path in largest_first}
            for path, digest in files.items():
                with read_errors(path):
                    if hashes[path].result() != digest:
                        raise changed(path)
                    tensors = reads.pop(path).result()()
                yield tensors
        finally:
            for pool in (hashing, copying):
                pool.shutdown(cancel_futures=True)


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


class _Room(NamedTuple):
    """Pinned memory. copied: when what it held last has left it."""

    pinned: Tensor
    content: memoryview
    copied: torch.cuda.Event


class _Reader:
    """Reads files onto a GPU, for the current stream. room: bytes of pinned memory, PIECE or as many as a file has."""

    def __init__(self, device: torch.device, kept: str, room: int) -> None:
        self._device, self._kept, self._stream = device, kept, torch.cuda.current_stream(device)
        self._room, self._own = room, local()

    def __call__(self, path: Path) -> Named:
        table = tuple(read_header(path).values())
        place = path.stat().st_size - sum(stored.bytes for stored in table)
        data: list[Tensor] = []
        with torch.cuda.stream(self._stream), open_input(path) as stream:
            for sizes in spans([stored.bytes for stored in table]):
                whole = torch.empty(sum(sizes), dtype=torch.uint8, device=self._device)
                self._fill(whole, path, stream.fileno(), place)
                data += [whole] if len(sizes) == 1 else torch.ops.aten.split_with_sizes_copy(whole, sizes)
                place += len(whole)
        return partial(self._named, path, table, data)

    def _fill(self, whole: Tensor, path: Path, handle: int, place: int) -> None:
        """Bytes uint8 [n] of a file from `place` on."""
        for start in range(0, len(whole), PIECE):
            target = whole[start : start + PIECE]
            pinned, content, copied = next(self._rooms())
            copied.synchronize()
            if not read_at(handle, content[: len(target)], place + start):
                raise changed(path)
            target.copy_(pinned[: len(target)], non_blocking=True)
            copied.record()

    def _rooms(self) -> Iterator[_Room]:
        """This thread's two, in turn."""
        if not hasattr(self._own, "rooms"):
            pinned = [torch.empty(self._room, dtype=torch.uint8, pin_memory=True) for _ in range(2)]
            rooms = [_Room(one, one.numpy().data, torch.cuda.Event()) for one in pinned]  # type: ignore[no-untyped-call]
            self._own.rooms = cycle(rooms)
        found: Iterator[_Room] = self._own.rooms
        return found

    def _named(self, path: Path, table: Sequence[StoredTensor], data: Sequence[Tensor]) -> dict[str, Tensor]:
        with safe_open(path, framework="pt") as file:
            return {
                stored.name: file.get_tensor(stored.name)
                if self._kept in stored.name
                else part.view(TYPES[stored.dtype]).view(stored.shape)
                for stored, part in zip(table, data, strict=True)
            }


def read_at(handle: int, content: memoryview, place: int) -> bool:
    """Fills `content` with the bytes of a file from `place` on; whether there are as many."""
    while content:
        count = os.preadv(handle, [content], place)
        if not count:
            return False
        content, place = content[count:], place + count
    return True


def spans(sizes: Sequence[int]) -> Iterator[list[int]]:
    """Neighbours that together have no more than PIECE bytes; a larger one alone."""
    span: list[int] = []
    for size in sizes:
        if span and sum(span) + size > PIECE:
            yield span
            span = []
        span.append(size)
    if span:
        yield span
