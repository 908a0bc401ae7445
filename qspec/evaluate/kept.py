"""Results of batches kept in a folder, so that an evaluation that was killed goes on where it was.

A batch is known by what the model was given and by everything that its result depends on (`owner`), not by its place
in a task: whatever order an evaluation takes, it finds what an earlier one computed, and nothing else.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from qspec.files import machine_errors, read_input, write_whole
from qspec.models.samplers.common import Around, Denoiser

Compute = Callable[[Any], Sequence[Tensor]]


@dataclass(frozen=True)
class KeptBatches:
    """folder: made where it is not there. owner: what the models are, and what computes them."""

    folder: Path
    owner: str

    def of(self, model: Any, name: str) -> Kept:
        """A model whose batches are kept; name: which of the models it is."""
        return Kept(model, self, name)


class Kept(Around[Any]):
    """A `Denoiser` whose batches are kept: see `batch`."""

    def __init__(self, model: Denoiser, batches: KeptBatches, name: str) -> None:
        super().__init__(model)
        self._batches, self._name = batches, name

    def hidden(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        return self.model.hidden(input_ids, attention_mask)  # type: ignore[no-any-return]

    def computed(self, what: str, inputs: Sequence[Tensor], compute: Compute) -> list[Tensor]:
        """What `compute` makes of the model for these inputs, or made of it in an earlier run."""
        path = self._batches.folder / f"{self._digest(what, inputs)}.safetensors"
        try:
            kept = load(read_input(path))
            return [kept[str(place)] for place in range(len(kept))]
        except (OSError, SafetensorError, KeyError):
            pass  # not there, or not whole: computed anew
        found = [tensor.cpu().contiguous() for tensor in compute(self.model)]
        with machine_errors(path):
            path.parent.mkdir(exist_ok=True)
            write_whole(path, save({str(place): tensor for place, tensor in enumerate(found)}))
        return found

    def _digest(self, what: str, inputs: Sequence[Tensor]) -> str:
        digest = hashlib.sha256(f"{self._batches.owner}\n{self._name}\n{what}\n".encode())
        for tensor in inputs:
            digest.update(repr((tensor.shape, tensor.dtype)).encode())
            digest.update(tensor.cpu().contiguous().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()


def computed(model: Denoiser, what: str, inputs: Sequence[Tensor], compute: Compute) -> list[Tensor]:
    """compute(model), on the CPU; kept where the model's batches are. what, inputs: all that it depends on beside the
    model."""
    if isinstance(model, Kept):
        return model.computed(what, inputs, compute)
    return [tensor.cpu() for tensor in compute(model)]
