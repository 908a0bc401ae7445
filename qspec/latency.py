"""How long the linears of one forward pass take on a GPU: measured where `qspec tune` measured, or else by its limits.

    row kernel   launch + bytes moved / bandwidth
    product      the time in the GPU's table (`kernels.tuned`) of its kernel, N, K and bucket of M; or, without one,
                 launch + max(bytes moved / bandwidth, operations / rate)

Limits and launches are as measured (docs/search.md). It weighs the choices of a search against each other; it does not
promise a time. Times are whole nanoseconds, so that sums are exact whatever their order.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from qspec.kernels import tuned
from qspec.plan import FLOAT_BITS, ModulePlan

REFERENCE = "NVIDIA H100 80GB HBM3"  # stands in where this machine has no GPU, and for the limits of unknown ones
BANDWIDTHS = {REFERENCE: 3000, "NVIDIA H200": 4300}  # bytes a nanosecond: a copy
RATES = {16: 790_000, 8: 1_200_000}  # operations a nanosecond, by the bits of the products: bfloat16, int8
LAUNCH = 2000  # nanoseconds of a kernel that does nothing


@dataclass(frozen=True)
class Product:
    """One linear's product for X [tokens, K]. measured: whether the table of `gpu` has it."""

    kernel: str
    channels: int  # N
    columns: int  # K
    tokens: int
    gpu: str
    nanoseconds: int
    measured: bool


def timed_gpu(device: torch.device) -> str:
    """The GPU whose times count for a search on this device: its own, or `REFERENCE` on a CPU."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else REFERENCE


def pass_time(modules: Iterable[ModulePlan], tokens: int, gpu: str) -> int:
    """Nanoseconds of these linears for X [tokens, in]: each one's product, and one row kernel for all that share it."""
    modules = tuple(modules)
    rows = {(m.entry.site, m.kernels.row): m.entry.in_features for m in modules if m.kernels and m.kernels.row}
    inputs = sum(
        LAUNCH + _memory(tokens * columns * (FLOAT_BITS + row.bits), gpu) for (_, row), columns in rows.items()
    )
    return inputs + sum(product(module, tokens, gpu).nanoseconds for module in modules)


def basis(products: Sequence[Product]) -> str:
    """What the times of these rest on, in words."""
    count, gpu = sum(one.measured for one in products), products[0].gpu
    limits = gpu if gpu in BANDWIDTHS else REFERENCE
    return f"{count} of {len(products)} products as measured on {gpu}, the rest by the limits of {limits}"


def product(module: ModulePlan, tokens: int, gpu: str) -> Product:
    """One linear's product."""
    entry, kernels = module.entry, module.kernels
    channels, columns = entry.out_features, entry.in_features
    measured = kernels and tuned.microseconds(gpu, kernels.gemm, channels, columns, tokens)
    time = round(1000 * measured) if measured else _limit(module, tokens, gpu)
    return Product(module.kernel.rpartition(" ")[2], channels, columns, tokens, gpu, time, bool(measured))


def _limit(module: ModulePlan, tokens: int, gpu: str) -> int:
    entry = module.entry
    bits = module.kernels.row.bits if module.kernels and module.kernels.row else FLOAT_BITS
    moved = module.stored_bits + tokens * (entry.in_features * bits + entry.out_features * FLOAT_BITS)
    rate = RATES[16 if bits == FLOAT_BITS else 8]
    return LAUNCH + max(_memory(moved, gpu), -(-2 * tokens * entry.weights // rate))


def _memory(bits: int, gpu: str) -> int:
    return -(-bits // (8 * BANDWIDTHS.get(gpu, BANDWIDTHS[REFERENCE])))
