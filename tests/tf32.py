"""What a GPU's TF32 does to float32 products, done on a CPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

PRODUCTS = {"mm", "bmm", "addmm", "baddbmm", "mv", "_scaled_dot_product_flash_attention_for_cpu"}


def cut(x: Tensor) -> Tensor:
    """x float32 rounded to the ten bits of mantissa that TF32 keeps, half to even."""
    bits = x.contiguous().view(torch.int32)
    return ((bits + 0xFFF + ((bits >> 13) & 1)) & ~0x1FFF).view(torch.float32)


class EmulatedTf32(TorchDispatchMode):
    """While it lasts, float32 factors are cut wherever torch's setting lets a GPU cut them; sums stay in float32.

    cut: how many products were; whole: how many float32 products were not.
    """

    def __init__(self) -> None:
        super().__init__()
        self.cut = self.whole = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func.overloadpacket.__name__ in PRODUCTS and any(_is_float32(a) for a in args):
            if torch.get_float32_matmul_precision() == "highest":
                self.whole += 1
            else:
                self.cut += 1
                first = 1 if "add" in func.overloadpacket.__name__ else 0  # what is added is no factor
                args = (*args[:first], *(cut(a) if _is_float32(a) else a for a in args[first:]))
        return func(*args, **(kwargs or {}))


def _is_float32(x: object) -> bool:
    return isinstance(x, Tensor) and x.dtype == torch.float32


def with_tf32(compute: Callable[[], Any]) -> Any:
    """What `compute` returns where its products may be cut."""
    with EmulatedTf32():
        return compute()
