"""Budgets as exact integers: what each option costs, and the most that a layout may cost.

Every cost is a whole number of the budget's smallest unit and adds up over the units of a space, because it is the
plan's own sum: bits for "bits", "active", "bytes" and "memory", nanoseconds for "time".
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from math import ceil, floor

from qspec.language.spec import BUDGET_UNITS, REGIMES, Budget
from qspec.latency import REFERENCE, TimedGemm, pass_time, timed_gemms
from qspec.plan import ModulePlan, Plan, stored_bits, tensor_bits
from qspec.plan.estimates import running_memory
from qspec.plan.modules import active_bits
from qspec.search.space import Layout, Space

DIGITS = 4  # of a cost that is shown


@dataclass(frozen=True)
class Limit:
    """costs: for each unit, of each option. fixed: what every layout costs beside. most: what a layout may cost.

    gemms: of a time, every distinct GEMM that it may sum, and whether it was measured.
    """

    budget: Budget
    costs: tuple[tuple[int, ...], ...]
    fixed: int
    most: int
    per_unit: Fraction  # the smallest unit's worth in the budget's own: of bits 1 / block weights
    gemms: tuple[TimedGemm, ...] = ()

    def cost(self, layout: Layout) -> int:
        return self.fixed + sum(row[index] for row, index in zip(self.costs, layout, strict=True))

    def holds(self, layout: Layout) -> bool:
        return self.cost(layout) <= self.most

    @property
    def least(self) -> int:
        return self.fixed + sum(map(min, self.costs))

    def shown(self, cost: int) -> str:
        """A cost in the budget's unit, rounded up: a budget of what is shown is enough."""
        whole, rest = divmod(ceil(cost * self.per_unit * 10**DIGITS), 10**DIGITS)
        return f"{whole}.{rest:0{DIGITS}} {self.budget.unit}"


def find_limits(space: Space, budgets: Sequence[Budget], gpu: str = REFERENCE) -> tuple[Limit, ...]:
    """A limit for each budget. gpu: the one whose times count."""
    return tuple(_limit(space, budget, gpu) for budget in budgets)


def _limit(space: Space, budget: Budget, gpu: str) -> Limit:
    plan = space.plan
    amount = Fraction(budget.amount) * BUDGET_UNITS[budget.unit][1]
    scale = BUDGET_UNITS[budget.unit][1]
    match budget.kind:
        case "bits":
            weights = plan.block_weights
            kept = stored_bits(_routers(plan))
            return _additive(space, budget, stored_bits, kept, floor(amount * weights), Fraction(1, weights))
        case "active":
            weights = plan.active_weights if budget.unit == "bits" else 8 * scale
            most = floor(amount * plan.active_weights) if budget.unit == "bits" else 8 * floor(amount) + 7
            kept = active_bits(_routers(plan))
            return _additive(space, budget, active_bits, kept, most, Fraction(1, weights))
        case "bytes":
            return _whole_bytes(space, budget, floor(amount), 0, Fraction(1, 8 * scale))
        case "memory":
            beside = running_memory(plan) - plan.bytes_after
            return _whole_bytes(space, budget, floor(amount), beside, Fraction(1, 8 * scale))
    assert budget.regime is not None
    tokens = REGIMES[budget.regime][1]
    most, per_unit = floor(amount * 1000), Fraction(1, 1000 * scale)
    times = _additive(space, budget, lambda own: pass_time(own, tokens, gpu), 0, most, per_unit)
    options = (option for unit in space.units for option in unit.options)
    timed = (one for option in options for one in timed_gemms(option.modules, tokens, gpu))
    return replace(times, gemms=tuple(dict.fromkeys(timed)))


def _routers(plan: Plan) -> tuple[ModulePlan, ...]:
    """Linears of the blocks that no layout changes."""
    return tuple(m for m in plan.linears() if m.entry.only_kept)


def _whole_bytes(space: Space, budget: Budget, most: int, beside: int, per_unit: Fraction) -> Limit:
    """Bytes are bits rounded down. beside: bytes that are not in the artifact's tensors."""
    plan = space.planned((0,) * len(space.units))
    own = sum(tensor_bits(unit.options[0].modules) for unit in space.units)
    return _additive(space, budget, tensor_bits, plan.bits_after - own + 8 * beside, 8 * most + 7, per_unit)


def _additive(
    space: Space,
    budget: Budget,
    of: Callable[[Sequence[ModulePlan]], int],
    fixed: int,
    most: int,
    per_unit: Fraction,
) -> Limit:
    costs = tuple(tuple(of(option.modules) for option in unit.options) for unit in space.units)
    return Limit(budget, costs, fixed, most, per_unit)
