"""Sealed files read onto a GPU through pinned memory.

python -m pytest tests/gpu/test_tensors.py -m gpu
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from qspec import tensors
from qspec.errors import InputError
from qspec.files import sha256
from qspec.tensors import read_sealed

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]


def read(files: dict[Path, str], device: torch.device) -> dict[str, torch.Tensor]:
    """All tensors of files."""
    return {name: tensor for own in read_sealed(files, device, kept=".transform.") for name, tensor in own.items()}


def test_tensors_on_a_gpu_are_those_of_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Several in a piece, one as large, one of many with a rest; more files than threads; a scalar, an empty one."""
    monkeypatch.setattr(tensors, "PIECE", 1 << 16)
    files = {}
    for number in range(9):
        path = tmp_path / f"{number}.safetensors"
        named = {
            "codes": torch.randint(0, 256, (701, 1000), dtype=torch.uint8),
            "whole": torch.rand(1 << 15).half(),
            "scale": torch.rand(60),
            "gain": torch.rand(500).bfloat16(),
            "unit": torch.rand(()),
            "none": torch.empty(0, 4),
            "transform.rotation0": torch.rand(64, 64).half(),
        }
        save_file({f"{number}.{name}": tensor for name, tensor in named.items()}, path)
        files[path] = sha256(path)
    found = read(files, torch.device("cuda"))
    expected = {name: tensor for path in files for name, tensor in load_file(path).items()}
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].device.type == ("cpu" if ".transform." in name else "cuda")
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name].cpu(), tensor)
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(InputError, match="was changed"):
        read(files, torch.device("cuda"))
