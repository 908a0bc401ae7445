"""How long a linear takes on the reference GPU, from its formats and shape alone. No torch.

    t = launch + max(bytes moved / bandwidth, operations / rate)

with the limits of one H200 as measured (docs/search.md): what weighs the choices of a search against each other,
not a promise. Times are whole nanoseconds, so that sums are exact whatever their order.
"""

from __future__ import annotations

from qspec.plan import FLOAT_BITS, ModulePlan

BANDWIDTH = 4300  # bytes a nanosecond: a copy
RATES = {16: 790_000, 8: 1_200_000}  # operations a nanosecond, by the bits of the products: bfloat16, int8
LAUNCH = 2000  # nanoseconds of a kernel that does nothing


def linear_time(module: ModulePlan, tokens: int) -> int:
    """Nanoseconds of one linear for X [tokens, in]: its row kernel, where it has one, and its product."""
    entry = module.entry
    activation_bits = FLOAT_BITS
    launches = 1
    if module.kernels is not None and module.kernels.row is not None:
        activation_bits = module.kernels.row.bits
        launches = 2
    moved = module.stored_bits + tokens * (entry.in_features * activation_bits + entry.out_features * FLOAT_BITS)
    operations = 2 * tokens * entry.weights
    rate = RATES[16 if activation_bits == FLOAT_BITS else 8]
    return launches * LAUNCH + max(-(-moved // (8 * BANDWIDTH)), -(-operations // rate))
