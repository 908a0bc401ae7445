"""Budgets hold by the planner's own figures, exactly, whatever the model, the schemes and the passes."""

from __future__ import annotations

import random
import re
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest

from qspec.kernels import tuned
from qspec.language.budgets import parse_budgets
from qspec.latency import basis
from qspec.plan import Plan
from qspec.search.allocate import Infeasible, allocate
from qspec.search.limits import find_limits
from qspec.search.recipe import recipe_text
from qspec.search.space import Space, find_space
from tests.search.spaces import FOLDER, SCHEMES, family_and_shape, plan_of, random_space, space_of

INSTANCES = 200


def emitted(space: Space, layout: tuple[int, ...]) -> Plan:
    """The plan of the recipe that is written for a layout: what a reader of the file will see."""
    text = recipe_text(space, layout, "found", ("evidence",), FOLDER)
    family, _ = family_and_shape("llada" if space.plan.family == "llada" else "dream")
    return plan_of(text, family, space.plan.shape)


def random_losses(space: Space, draw: random.Random) -> list[list[float]]:
    return [[draw.random() for _ in unit.options] for unit in space.units]


@pytest.mark.parametrize("part", range(4))
def test_budgets_hold_exactly(part: int) -> None:
    for instance in range(part * INSTANCES // 4, (part + 1) * INSTANCES // 4):
        draw = random.Random(instance)
        space = random_space(draw)
        losses = random_losses(space, draw)
        bits = f"{draw.uniform(2, 9):.{draw.randint(1, 4)}f}"
        size = f"{draw.uniform(0.3, 5):.3f}"
        both = draw.random() < 0.5
        limits = find_limits(space, parse_budgets(f"{bits} bits, {size} MiB" if both else f"{bits} bits"))
        try:
            layout = allocate(losses, limits)
        except Infeasible as error:
            check_smallest(space, str(error), losses)
            continue
        plan = emitted(space, layout)
        assert space.planned(layout).kernels() == plan.kernels(), instance
        weights = plan.block_weights
        # bits_per_weight is a quotient of whole numbers below 2^53: its product with the weights is that whole number.
        assert Fraction(round(plan.bits_per_weight * weights), weights) <= Fraction(bits), instance
        assert plan.bits_per_weight <= float(bits), instance
        assert limits[0].cost(layout) == round(plan.bits_per_weight * weights), instance
        if both:
            assert plan.bytes_after <= Fraction(size) * 2**20, instance
            assert limits[1].cost(layout) // 8 == plan.bytes_after, instance


def check_smallest(space: Space, message: str, losses: list[list[float]]) -> None:
    """Where one budget alone cannot be held, the figure named can be, and a ten-thousandth less cannot."""
    for amount, unit in re.findall(r"smallest feasible one is ([0-9.]+) (\w+)", message):
        allocate(losses, find_limits(space, parse_budgets(f"{amount} {unit}")))
        less = Fraction(amount) - Fraction(1, 10**4)
        with pytest.raises(Infeasible):
            allocate(losses, find_limits(space, parse_budgets(f"{float(less):.4f} {unit}")))
    if "together" in message:
        assert re.findall(r"would have to be ([0-9.]+) (\w+)", message)


def test_the_smallest_feasible_budget_by_hand() -> None:
    """int3 with one float32 scale a row: tiny-llada has six linears of 256 inputs, and one of 768."""
    space = space_of("offer w3, w8 on blocks[*].*", ["w3", "w8"])
    rows_256, rows_768 = 4 * 256 + 2 * 768, 256
    weights = rows_256 * 256 + rows_768 * 768
    least = Fraction(3 * weights + 32 * (rows_256 + rows_768), weights)
    assert Fraction("3.1057") < least < Fraction("3.1058")  # what is shown is rounded up
    with pytest.raises(Infeasible, match=re.escape("the smallest feasible one is 3.1058 bits")):
        allocate([[0.0] * len(u.options) for u in space.units], find_limits(space, parse_budgets("3 bits")))


def test_budgets_that_cannot_be_held_together() -> None:
    """At these sizes rounding the input of `o` costs a kernel more: kept it is the fastest, and the largest."""
    space = space_of("offer w8, keep on blocks[*].attention.o", ["w8"], activations="int8 per token symmetric")
    w8, kept = (tuple(min(index, len(unit.options) - 1) for unit in space.units) for index in (0, 1))
    bits, time = find_limits(space, parse_budgets("9 bits, 1 ms for block_decode"))
    least = f"{bits.shown(bits.cost(w8))}, {time.shown(time.cost(kept))} for block_decode"
    assert time.cost(kept) < time.cost(w8)
    with pytest.raises(Infeasible, match="together") as caught:
        allocate([[0.0] * len(unit.options) for unit in space.units], find_limits(space, parse_budgets(least)))
    assert f"would have to be {time.shown(time.cost(w8))}" in str(caught.value)
    assert f"would have to be {bits.shown(bits.cost(kept))}" in str(caught.value)


def test_memory_counts_the_largest_pass() -> None:
    """Beside the artifact's bytes: 8000 tokens of two residual rows and three of the MLP, two bytes each."""
    space = space_of("offer w3, w8 on blocks[*].*", ["w3", "w8"])
    stored, memory = find_limits(space, parse_budgets("1 GiB, 1 GiB memory"))
    layout = (0,) * len(space.units)
    assert memory.cost(layout) - stored.cost(layout) == 8 * 2 * 8000 * (2 * 256 + 3 * 768)


def test_times_add_up_by_hand() -> None:
    """One block of tiny-llada in W8A16 at 64 tokens, nothing measured: everything waits for memory."""
    space = space_of("offer w8 on blocks[*].*", ["w8"], layers=1)
    (limit,) = find_limits(space, parse_budgets("1 ms for block_decode"))
    expected = sum(2000 + -(-64 * 4 * 256 // 3000) for _ in range(2))  # the norms read and write 16 bits
    for rows, columns, written in [(768, 256, 768), (256, 256, 256), (1536, 256, 768), (256, 768, 256)]:
        moved = rows * columns + 4 * rows + 64 * 2 * (written + columns)  # gate and up give half of what they are
        expected += 2000 + -(-moved // 3000)
    assert limit.cost((0,) * 4) == expected
    assert not any(one.measured for one in limit.gemms)


@pytest.mark.parametrize(("activations", "gate"), [("int8 per token symmetric", 0), ("none", 2000)])
def test_a_gate_that_no_product_gives_takes_time(activations: str, gate: int) -> None:
    """Gate in w8, up in w3: two products, and for silu(gate) up one row more that is read, or a kernel of its own."""
    offers = "offer w8, w3 on blocks[*].mlp.{gate,up}\nfused false"
    space = space_of(offers, ["w8", "w3"], layers=1, activations=activations)
    (limit,) = find_limits(space, parse_budgets("1 ms for block_decode"))
    (unit,) = [i for i, unit in enumerate(space.units) if not unit.pinned]
    costs = {
        tuple(c.name for c in o.choices if c): limit.costs[unit][i] for i, o in enumerate(space.units[unit].options)
    }
    read = 256 * 3 if gate == 0 else 256 * 4
    expected = 2000 + -(-64 * read // 3000) + gate + -(-64 * 768 * (2 if gate == 0 else 6) // 3000)
    for bits in (8, 3):
        moved = 768 * 256 * bits // 8 + 4 * 768 + 64 * (256 * (1 if gate == 0 else 2) + 768 * 2)
        expected += 2000 + -(-moved // 3000)
    assert costs["w8", "w3"] == expected


def test_times_are_those_of_the_table_where_it_has_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """W8A8 at 64 tokens: q, k and v are one product, and gate and up; those of 256 and 768 x 256 were measured."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    space = space_of("offer w8 on blocks[*].*", ["w8"], layers=1, activations="int8 per token symmetric")
    kernels = space.units[0].options[0].modules[0].kernels
    assert kernels is not None
    options = {"BLOCK_N": 64, "BLOCK_M": 64, "K_BLOCKS": 1, "STAGES": 2, "SPLIT": 1, "CTAS_PER_SM": 1, "K_SLICES": 1}
    table = {
        tuned.key(kernels.gemm, channels, 256, 64, "3.6.0"): {"options": options, "microseconds": t}
        for channels, t in ((256, 7.25), (768, 9.5))
    }
    tuned.write(tuned.own_file("NVIDIA H200"), "NVIDIA H200", table)
    (limit,) = find_limits(space, parse_budgets("1 ms for block_decode"), "NVIDIA H200")
    rows = sum(2000 + -(-64 * read // 4300) for read in (256 * 3, 256 * 3, 256 * 3, 768 * 3))
    limits = sum(
        2000 + -(-(n * k + 4 * n + 64 * (k + 2 * y)) // 4300) for n, k, y in [(1536, 256, 768), (256, 768, 256)]
    )
    assert limit.cost((0,) * 4) == 7250 + 9500 + rows + limits
    assert basis(limit.gemms).startswith("2 of 4 GEMMs as measured on NVIDIA H200, the rest")


@pytest.mark.parametrize("name", sorted(SCHEMES))
def test_a_layout_of_one_scheme_costs_what_the_plan_says(name: str) -> None:
    space = space_of(f"offer {name}, keep on blocks[*].*", [name])
    layout = space.uniform(space.plan.spec.schemes[name])
    assert layout is not None
    (limit,) = find_limits(space, parse_budgets("16 bits"))
    assert limit.cost(layout) / space.plan.block_weights == space.plan.bits_per_weight


def test_a_tied_model_has_a_recipe_of_its_own() -> None:
    """`layers head, embedding keep`, which every found recipe ends with, names the one tensor."""
    plan = space_of("offer w8, w3 on blocks[*].*", ["w8", "w3"], layers=2).plan
    space = find_space(plan_of(plan.spec.text, family_and_shape()[0], replace(plan.shape, tied=True)))
    assert "layers head, embedding keep\n" in recipe_text(space, (0,) * len(space.units), "found", (), FOLDER)
