"""Hadamard matrices: H [n, n] of entries 1 and -1 with H H^T = n I. The orders are known without torch.

With chi the quadratic character of GF(q) and Q[i, j] = chi(a_i - a_j) over its elements:

    Sylvester    n = 2^k         H = [[1, 1], [1, -1]] (x) .. (x) [[1, 1], [1, -1]]
    Paley I      n = q + 1       H = I + [[0, 1], [-1, Q]],                                q = 3 mod 4 a prime power
    Paley II     n = 2 (q + 1)   H = C (x) [[1, 1], [1, -1]] + I (x) [[1, -1], [-1, -1]],  q = 1 mod 4 a prime power
                                 C = [[0, 1], [1, Q]]

(R. E. A. C. Paley, On orthogonal matrices, 1933), and Kronecker products of one of Paley's with one of Sylvester's. Of
the multiples of 4 up to 256, these lack 92, 116, 156, 172, 184, 188, 232 and 236.
"""

from __future__ import annotations

import math
from functools import cache
from itertools import product
from typing import TYPE_CHECKING

from qspec.catalog import ROTATION_BLOCKS, SECOND_BLOCKS, NoKernel, rotated_width
from qspec.lazy import LazyModule

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = LazyModule("torch")

Polynomial = tuple[int, ...]  # coefficients modulo a prime, that of x^0 first


def exists(order: int) -> bool:
    """Whether `matrix` can build this order."""
    return _base(order) is not None


def factors(channels: int, where: str) -> tuple[int, ...]:
    """Orders of Hadamard matrices that a row kernel runs, one or two: their Kronecker product is the block of the
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


def matrix(order: int) -> Tensor:
    """H, int8 [order, order]. Raises ValueError where no construction gives this order."""
    base = _base(order)
    if base is None:
        raise ValueError(f"no construction here gives a Hadamard matrix of order {order}")
    pair = torch.tensor([[1, 1], [1, -1]], dtype=torch.int8)
    h = torch.ones(1, 1, dtype=torch.int8) if base == 1 else _paley(base)
    while h.shape[0] < order:
        h = torch.kron(h, pair)
    return h


def orthogonal(order: int) -> Tensor:
    """H / sqrt(order), float64 [order, order]."""
    return matrix(order).double() / math.sqrt(order)


def _base(order: int) -> int | None:
    """The smallest order times a power of two that is `order` and is 1 or Paley's; None where there is none."""
    if order < 1:
        return None
    power = order & -order
    odd = order // power
    bases = (odd << shift for shift in range(power.bit_length()))
    return next((base for base in bases if base == 1 or _field(base)), None)


def _field(order: int) -> int | None:
    """q of the Paley matrix of this order, I before II; None where there is none."""
    if order % 4 == 0 and _prime_power(order - 1):
        return order - 1
    if order % 8 == 4 and _prime_power(order // 2 - 1):
        return order // 2 - 1
    return None


def _prime_power(q: int) -> tuple[int, int] | None:
    """(p, k) with q = p^k, p prime, k >= 1."""
    p = next((d for d in range(2, math.isqrt(q) + 1) if q % d == 0), q)
    k = 0
    while q % p == 0 and q > 1:
        q, k = q // p, k + 1
    return (p, k) if q == 1 and k else None


def _paley(order: int) -> Tensor:
    q = _field(order)
    assert q is not None
    size = q + 1
    core = torch.ones(size, size, dtype=torch.int8)
    core[0, 0] = 0
    core[1:, 1:] = _differences(q)
    one = torch.eye(size, dtype=torch.int8)
    if order == size:
        core[1:, 0] = -1
        return one + core
    plus = torch.tensor([[1, 1], [1, -1]], dtype=torch.int8)
    minus = torch.tensor([[1, -1], [-1, -1]], dtype=torch.int8)
    return torch.kron(core, plus) + torch.kron(one, minus)


def _differences(q: int) -> Tensor:
    """chi(a_i - a_j), int8 [q, q]: 0 on the diagonal, 1 where the difference is a square of GF(q), else -1."""
    found = _prime_power(q)
    assert found is not None
    p, k = found
    elements = [tuple(reversed(digits)) for digits in product(range(p), repeat=k)]  # element i: the digits of i base p
    modulus = _irreducible(p, k)
    character = torch.full((q,), -1, dtype=torch.int8)
    for element in elements:
        square = _remainder(_product(element, element), modulus, p)
        character[sum(digit * p**place for place, digit in enumerate(square))] = 1
    character[0] = 0
    digits = torch.tensor(elements)
    index = ((digits[:, None] - digits[None]) % p * torch.tensor([p**place for place in range(k)])).sum(-1)
    return character[index]


@cache
def _irreducible(p: int, degree: int) -> Polynomial:
    """The first monic polynomial of this degree over GF(p) that none of a lower degree divides."""
    divisors = [(*low, 1) for d in range(1, degree // 2 + 1) for low in product(range(p), repeat=d)]
    candidates = ((*low, 1) for low in product(range(p), repeat=degree))
    return next(f for f in candidates if all(any(_remainder(f, g, p)) for g in divisors))


def _product(a: Polynomial, b: Polynomial) -> Polynomial:
    total = [0] * (len(a) + len(b) - 1)
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            total[i + j] += x * y
    return tuple(total)


def _remainder(a: Polynomial, monic: Polynomial, p: int) -> Polynomial:
    """a modulo a monic polynomial, its coefficients modulo p."""
    rest = list(a)
    while len(rest) >= len(monic):
        lead, shift = rest.pop(), len(rest) - len(monic) + 1
        for place, factor in enumerate(monic[:-1]):
            rest[place + shift] -= lead * factor
    return tuple(value % p for value in rest)
