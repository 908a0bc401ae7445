"""Tensors of sealed safetensors files: several files at once, each hashed and then put where it is wanted.

Files are mapped: on a CPU a weight lies where the page cache has it, and a GPU copies it from there.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from qspec.artifact import changed, require_there
from qspec.files import cores, read_errors, sha256


def read_sealed(files: Mapping[Path, str], device: torch.device, kept: str) -> dict[str, Tensor]:
    """name -> tensor of safetensors files, on `device`; on the CPU where `kept` is a part of the name.

    files: with their sha256. Errors: InputError of the first file that is missing, was changed or cannot be read.
    """
    require_there(files)
    largest_first = sorted(files, key=lambda path: path.stat().st_size, reverse=True)  # a hash is one thread's work
    stream = torch.cuda.current_stream(device) if device.type == "cuda" else None
    tensors: dict[str, Tensor] = {}
    with ThreadPoolExecutor(cores()) as pool:
        try:
            reads = {path: pool.submit(_read, path, files[path], stream, kept) for path in largest_first}
            for path in files:
                tensors.update(reads[path].result())
        finally:
            pool.shutdown(cancel_futures=True)
    return tensors


def _read(path: Path, digest: str, stream: torch.cuda.Stream | None, kept: str) -> dict[str, Tensor]:
    """stream: that of the tensors' users on a GPU; None on a CPU."""
    with read_errors(path), torch.cuda.stream(stream):
        if sha256(path) != digest:
            raise changed(path)
        mapped: dict[str, Tensor] = load_file(path)
        if stream is None:
            return mapped
        return {name: tensor if kept in name else tensor.to(stream.device) for name, tensor in mapped.items()}
