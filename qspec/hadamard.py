"""Hadamard matrices: H [n, n] of entries 1 and -1 with H H^T = n I.

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

import torch
from torch import Tensor

from qspec import hadamard_orders

Polynomial = tuple[int, ...]  # coefficients modulo a prime, that of x^0 first


def matrix(order: int) -> Tensor:
    """H, int8 [order, order]. Raises ValueError where no construction gives this order."""
    base = hadamard_orders.base(order)
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


def _paley(order: int) -> Tensor:
    q = hadamard_orders.field_order(order)
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
    found = hadamard_orders.prime_power(q)
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
