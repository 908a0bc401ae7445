"""How float32 products are computed while a model is compiled and measured: in full, or with factors cut to TF32.

On a GPU TF32 keeps ten bits of a factor's mantissa (2^-11 of its size is lost), on some CPUs products may even be cut
to bfloat16. Who calls us may have asked for either; what a compile decides must not depend on it. So full precision is
the rule, set where a compile, a job of a search, an evaluation or an inspection starts, and once more where outputs are
compared and products are inverted:

    in full      function checks, signal to noise, Hessians and cross products (their inverses magnify what is lost),
                 rotations, GPTQ's updates
    may be TF32  forward passes over calibration rows, whose results are rounded to bfloat16 on a GPU anyway, four
                 times as coarse; the alphas that `smooth` compares, which are all cut alike

docs/measurements.md has what either costs.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch

CUDA = torch.backends.cuda.matmul
ONEDNN = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]


@contextmanager
def exact_products() -> Iterator[None]:
    """While it lasts, float32 products are float32 products, whatever the caller has set."""
    with _products("highest"):
        yield


@contextmanager
def fast_products() -> Iterator[None]:
    """While it lasts, float32 products on a GPU may cut their factors to TF32; on most CPUs nothing changes."""
    with _products("high"):
        yield


@contextmanager
def _products(precision: Literal["highest", "high"]) -> Iterator[None]:
    before = _current()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        _restore(before)


def _current() -> str | tuple[str, str]:
    """The precision, or those of CUDA's and oneDNN's products, where they were set one by one."""
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:  # torch refuses to name one precision once the backends have their own
        return CUDA.fp32_precision, ONEDNN.fp32_precision


def _restore(before: str | tuple[str, str]) -> None:
    if isinstance(before, str):
        torch.set_float32_matmul_precision(before)
    else:
        CUDA.fp32_precision, ONEDNN.fp32_precision = before
