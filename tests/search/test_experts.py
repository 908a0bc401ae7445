"""What a search chooses between in a mixture of experts, and the rules that say what it found."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest

from qspec.errors import InputError
from qspec.language.budgets import parse_budgets
from qspec.language.spec import Budget
from qspec.models.llada2 import LLADA2
from qspec.plan import stored_bits
from qspec.search.limits import find_limits
from qspec.search.recipe import _rules
from qspec.search.space import Space, find_space
from tests.models.expert_layout import TINY_LLADA2
from tests.search.spaces import SCHEMES, plan_of

SHAPE = replace(LLADA2.shape(TINY_LLADA2 | {"hidden_size": 64, "head_dim": 16, "rotary_dim": 8}), ffn=64)
SHAPE = replace(SHAPE, experts=replace(SHAPE.experts, ffn=64, shared=64) if SHAPE.experts else None)


def space(offers: str, fused: bool = True) -> Space:
    schemes = "".join(f"scheme {name} {{\n weights {SCHEMES[name]}\n}}\n" for name in ("w8", "w3"))
    text = (
        f'qspec 1\nrecipe r {{\n family llada2\n model "m"\n}}\n{schemes}layers blocks[*].* use w8\n'
        f"apply rtn() on blocks[*].*\nsearch {{\n{offers}\nfused {str(fused).lower()}\n}}\n"
    )
    return find_space(plan_of(text, LLADA2, SHAPE))


def test_experts_choose_together() -> None:
    found = space("offer w8, w3 on blocks[*].*")
    assert [unit.site.partition(".")[2] for unit in found.units] == [
        *("attention.input", "attention.mixed", "mlp.input", "mlp.gated"),
        *("attention.input", "attention.mixed", "mlp.input", "mlp.experts.gated", "mlp.shared.gated") * 2,
    ]
    assert [len(unit.options) for unit in found.units] == [2, 2, 2, 2, *(2, 2, 4, 2, 2) * 2]
    mixed = found.units[6]
    targets = {str(target) for option in mixed.options for target, _ in option.probes}
    assert targets == {"blocks[1].mlp.experts[0..7].{gate,up}", "blocks[1].mlp.shared.{gate,up}"}
    assert not any("router" in str(m.entry.role) for unit in found.units for m in unit.options[0].modules)


def test_experts_that_are_offered_otherwise_choose_for_themselves() -> None:
    found = space("offer w8, w3 on blocks[*].*\noffer w3, keep on blocks[2].mlp.experts[0..2].down", fused=False)
    downs = next(unit for unit in found.units if unit.site == "blocks[2].mlp.experts.gated")
    assert len(downs.options) == 4
    assert {str(target) for option in downs.options for target, _ in option.probes} == {
        "blocks[2].mlp.experts[0..2].down",
        "blocks[2].mlp.experts[3..7].down",
    }


@pytest.mark.parametrize("offers", ["", "\noffer w3, keep on blocks[2].mlp.experts[0..2].down"])
def test_rules_say_what_was_found(offers: str) -> None:
    found = space(f"offer w8, w3 on blocks[*].*{offers}", fused=False)
    last = [len(unit.options) - 1 for unit in found.units]
    for ends in product((0, 1), repeat=3):
        layout = tuple(top * ends[place % 3] for place, top in enumerate(last))
        plan = found.planned(layout)
        rules = "\n".join(_rules(plan, found.choices(layout)))
        schemes = "".join(f"scheme {name} {{\n weights {SCHEMES[name]}\n}}\n" for name in ("w8", "w3"))
        again = plan_of(
            f'qspec 1\nrecipe r {{\n family llada2\n model "m"\n}}\n{schemes}{rules}\napply rtn() on blocks[*].*\n',
            LLADA2,
            SHAPE,
        )
        assert [(m.entry.role, m.scheme and m.scheme.name) for m in again.modules] == [
            (m.entry.role, m.scheme and m.scheme.name) for m in plan.modules
        ]


def test_other_probes_are_refused() -> None:
    with pytest.raises(InputError, match="`probe fisher` does not know mixtures of experts"):
        space("offer w8, w3 on blocks[*].*\nprobe fisher")


def test_costs_are_the_plans() -> None:
    found = space("offer w8, w3 on blocks[*].*")
    (limit,) = find_limits(found, [Budget("bits", "4.5", "bits", None)])
    for index in (0, 1):
        layout = (index,) * len(found.units)
        plan = found.planned(layout)
        routers = sum(m.stored_bits for m in plan.linears() if m.entry.only_kept)
        assert limit.cost(layout) == stored_bits(tuple(plan.linears()))
        assert routers == 2 * 8 * 64 * 32


def test_budgets_of_what_a_token_touches() -> None:
    """Of eight experts a token takes two."""
    found = space("offer w8, w3 on blocks[*].*")
    bits, size = find_limits(found, [*parse_budgets("5 bits active"), *parse_budgets("64 KiB active")])
    for index in (0, 1):
        plan = found.planned((index,) * len(found.units))
        experts = sum(m.stored_bits for m in plan.linears() if m.entry.role.expert is not None)
        every = sum(m.stored_bits for m in plan.linears())
        touched = every - experts + experts // 4
        assert bits.cost((index,) * len(found.units)) == size.cost((index,) * len(found.units)) == touched
        assert plan.active_bits == touched
    weights = sum(m.entry.weights // (4 if m.entry.role.expert is not None else 1) for m in found.plan.linears())
    assert found.plan.active_weights == weights
    assert bits.most == 5 * weights
    assert size.most // 8 == 64 * 1024
