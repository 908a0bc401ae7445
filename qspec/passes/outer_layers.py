"""What lies outside the blocks: embedding, final norm and head, as passes over a whole model rewrite them."""

from __future__ import annotations

import zlib
from collections.abc import Mapping

import torch
from torch import Tensor

from qspec import numerics
from qspec.calibrate.stream import Rotated
from qspec.errors import InputError
from qspec.models.family import DecoderShape, Family, Role


class OuterLayers:
    """The checkpoint's tensors outside the blocks, by full name, and the basis that the residual stream gets."""

    def __init__(self, family: Family, shape: DecoderShape, tensors: Mapping[str, Tensor], seed: int) -> None:
        self.family = family
        self.shape = shape
        self.tensors = dict(tensors)
        self.seed = seed
        self.basis: Tensor | None = None

    def generator(self, name: str) -> torch.Generator:
        """Random numbers that depend on the recipe's seed and `name` alone."""
        return torch.Generator().manual_seed(zlib.crc32(f"{self.seed}/outer/{name}".encode()))

    def rotate_residual(self, basis: Tensor) -> None:
        """h --> h Q for the residual stream: E --> E Q; with g the final norm's gain, head W --> W diag(g) Q, g --> 1.

        basis: orthogonal float32 [width, width]. Raises InputError where the head is tied to the embedding: they are no
        longer one matrix once the gain is folded into the head.
        """
        if self.shape.tied:
            raise InputError(
                "the residual stream of a model with tied embeddings cannot be rotated",
                hint="use a rotation that leaves the residual stream alone",
            )
        if self.basis is not None:
            raise InputError("two passes rotate the residual stream", hint="keep one of them")
        q = basis.double()
        embedding, norm, head = (self._name(part) for part in ("embedding", "final_norm", "head"))
        gain = self.tensors[norm].double()
        self.tensors[embedding] = _rotated(self.tensors[embedding], q)
        self.tensors[head] = _rotated(self.tensors[head], gain[:, None] * q)
        self.tensors[norm] = torch.ones_like(gain, dtype=torch.float32)
        self.basis = basis

    def stored(self) -> dict[str, Tensor]:
        """As an artifact holds them: norm gains in float32, embedding and head in bfloat16."""
        return {
            name: numerics.as_stored(t, torch.float32 if t.ndim == 1 else torch.bfloat16, name)
            for name, t in self.tensors.items()
        }

    def rotated(self) -> Rotated | None:
        """The basis and the embedding as stored; None where nothing was rotated."""
        if self.basis is None:
            return None
        return Rotated(self.basis, self.tensors[self._name("embedding")].to(torch.bfloat16))

    def _name(self, part: str) -> str:
        return f"{self.family.module(Role(part))}.weight"


def _rotated(weight: Tensor, q: Tensor) -> Tensor:
    """W Q in float32, some rows at a time: the embedding of a large model takes gigabytes in float64."""
    return torch.cat([(rows.double() @ q).float() for rows in torch.split(weight, 8192)])
