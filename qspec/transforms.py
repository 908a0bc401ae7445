"""Online transforms of a linear's input, and their exact inverse on its weight.

    y = x W^T = T(x) (W T^-1)^T,    T(x) = x R1            ("rotate")
                                    T(x) = (x R1)[P] R2    ("rotate_permute_rotate", DuQuant, arXiv 2406.01721)

R1 and R2 are block diagonal: one [block, block] matrix shared by all blocks, as DuQuant's own code has it; P is a
permutation of all channels. Rotations are stored in float16, and the weight is multiplied by the true inverse of the
*stored* matrix, so storage costs no accuracy: the function is preserved to float32 rounding whatever R's own error.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class InputTransform:
    """rotations: one or two float16 [block, block]; permutation: int32 [in] (None with one rotation).

    The two blocks may differ in size. y[:, j] = x[:, permutation[j]] for the permutation step.
    """

    rotations: tuple[Tensor, ...]
    permutation: Tensor | None = None

    @property
    def blocks(self) -> tuple[int, ...]:
        """The size of each rotation's block."""
        return tuple(int(rotation.shape[0]) for rotation in self.rotations)

    def apply(self, x: Tensor) -> Tensor:
        """T(x) in float32 for x [..., in]."""
        x = block_rotate(x.float(), self.rotations[0].float())
        if self.permutation is None:
            return x
        return block_rotate(x[..., self.permutation.long()], self.rotations[1].float())

    def absorb(self, w: Tensor) -> Tensor:
        """W T^-1 in w's dtype, for W [out, in]: T applied to the rows of W, with R replaced by R^-T."""
        inverses = [torch.linalg.inv(r.double()).T for r in self.rotations]
        out = block_rotate(w.double(), inverses[0])
        if self.permutation is not None:
            out = block_rotate(out[:, self.permutation.long()], inverses[1])
        return out.to(w.dtype)

    def to(self, device: torch.device | str) -> InputTransform:
        permutation = None if self.permutation is None else self.permutation.to(device)
        return InputTransform(tuple(r.to(device) for r in self.rotations), permutation)

    def stored_bits(self) -> int:
        """Bits that the transform takes in the artifact."""
        tensors = [*self.rotations, *([] if self.permutation is None else [self.permutation])]
        return sum(t.numel() * t.element_size() * 8 for t in tensors)


def block_rotate(x: Tensor, rotation: Tensor) -> Tensor:
    """x [..., in] times the block-diagonal matrix whose every block is `rotation` [block, block]."""
    block = rotation.shape[0]
    return (x.reshape(-1, block) @ rotation).reshape(x.shape)
