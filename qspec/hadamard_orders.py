"""Orders of the Hadamard matrices that `qspec.hadamard` builds, and those that rotate so many channels. No torch."""

from __future__ import annotations

import math

from qspec.catalog import ROTATION_BLOCKS, SECOND_BLOCKS, NoKernel, rotated_width


def exists(order: int) -> bool:
    """Whether `qspec.hadamard.matrix` can build this order."""
    return base(order) is not None


def factors(channels: int, where: str) -> tuple[int, ...]:
    """Orders of Hadamard matrices that a kernel runs online, one or two: their Kronecker product is the block of the
    largest block-diagonal rotation of `channels` channels.

    One block where an order or a product of two reaches that far: 12288 = 128 x 96, 18944 = 128 x 148, 768 = 64 x 12.
    Else several: 11008 = 43 blocks of 16 x 16, 1184 = 37 of 32. Of equal blocks the one with fewer rotations, then
    with the least padding of a second order, which kernels hold as a power of two, 16 or more (11008 in blocks of
    128 x 2 would take 88064 places, more than fit), then with the larger first order.

    Raises NoKernel, naming `where`, where no multiple of 16 divides the channels.
    """
    low, high = SECOND_BLOCKS
    seconds = [order for order in range(low, high + 1) if exists(order)]
    found = [(first,) for first in ROTATION_BLOCKS] + [(a, b) for a in ROTATION_BLOCKS for b in seconds]
    fitting = [orders for orders in found if channels % math.prod(orders) == 0]
    if channels < 1 or not fitting:
        reason = f"no Hadamard rotation of {channels} input channels has a kernel: no multiple of {ROTATION_BLOCKS[0]}"
        raise NoKernel(reason, where=where)
    return max(fitting, key=lambda orders: (math.prod(orders), -len(orders), -_padding(orders), orders[0]))


def _padding(orders: tuple[int, ...]) -> float:
    """Places that a row takes before its second rotation, over its channels: 16 / 12 for 64 x 12, 8 for 128 x 2."""
    return rotated_width(orders[-1]) / orders[-1]


def base(order: int) -> int | None:
    """The smallest order times a power of two that is `order` and is 1 or Paley's; None where there is none."""
    if order < 1:
        return None
    power = order & -order
    odd = order // power
    bases = (odd << shift for shift in range(power.bit_length()))
    return next((base for base in bases if base == 1 or field_order(base)), None)


def field_order(order: int) -> int | None:
    """q of the Paley matrix of this order, I before II; None where there is none."""
    if order % 4 == 0 and prime_power(order - 1):
        return order - 1
    if order % 8 == 4 and prime_power(order // 2 - 1):
        return order // 2 - 1
    return None


def prime_power(q: int) -> tuple[int, int] | None:
    """(p, k) with q = p^k, p prime, k >= 1."""
    p = next((d for d in range(2, math.isqrt(q) + 1) if q % d == 0), q)
    k = 0
    while q % p == 0 and q > 1:
        q, k = q // p, k + 1
    return (p, k) if q == 1 and k else None
