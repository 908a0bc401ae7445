"""A difference is empty exactly where two recipes mean the same, and says of plans what their JSON says."""

from __future__ import annotations

import contextlib
import random
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from qspec.diagnostics import RecipeError
from qspec.difference.changes import Fate
from qspec.difference.facts import Outline
from qspec.difference.versions import Version
from qspec.errors import InputError
from qspec.language.selectors import Selector
from qspec.language.spec import Spec
from qspec.models.registry import FAMILIES
from qspec.plan import Plan, make_plan
from qspec.plan.data import plan_data
from tests.difference.recipes import LLADA, PASSES, RECIPES, SETTINGS, Recipe, compared, version

WORDS = {
    "symmetric": "asymmetric", "asymmetric": "symmetric", "mse": "none", "none": "mse", "uniform": "grid",
    "int4": "int3", "int8": "int6", "channel": "tensor", "w4a4": "w8a8", "w8a8": "w4", "w4": "w4a4", "use": "keep",
    "activation": "natural", "true": "false", "within": "none", "gsm8k": "mbpp", "smooth": "awq", "forward": "noise",
    "block_decode": "block_decode, full_sequence", "full_sequence": "block_decode", "llada": "llada, dream",
    "r": "other", '"m/m"': '"m/n"', '"main"': '"v2"', '"wikitext2"': '"c4"', "kl": "nelbo", "down": "up",
    "mlp": "attention", "bits": "GiB", "sm_90": "sm_90, sm_80",
}  # fmt: skip
SEEDS = st.integers(0, 1 << 30)


def read(text: str) -> Version:
    """Throws away what does not resolve, or does not fit the model."""
    try:
        found = version(text)
        plan(found.spec)
    except (RecipeError, InputError):
        assume(False)
    return found


def plan(spec: Spec) -> Plan:
    return make_plan(spec, LLADA.family, LLADA.shape, standin=True)


def mutations(text: str) -> list[str]:
    """One number, word or statement of a recipe that is written in full is another one, or gone, or elsewhere."""
    found = []
    for number in re.finditer(r"(?<![\w\"])\d+(\.\d+)?", text):
        values = [f"{float(number[0]) / 2}"] if "." in number[0] else [str(int(number[0]) + step) for step in (1, -1)]
        found += [text[: number.start()] + value + text[number.end() :] for value in values]
    for word in re.finditer(r'"[^"]*"|\w+', text):
        if word[0] in WORDS:
            found.append(text[: word.start()] + WORDS[word[0]] + text[word.end() :])
    lines = text.split("\n")
    for at in range(1, len(lines) - 1):
        found.append("\n".join([*lines[:at], *lines[at + 1 :]]))
        found.append("\n".join([*lines[:at], lines[at + 1], lines[at], *lines[at + 2 :]]))
    return found


def mutated(text: str, seed: int) -> str:
    return random.Random(seed).choice(mutations(text))


def meaning(spec: Spec, layers: int | None = None) -> Any:
    """The resolved recipe with what its selectors decide in place of how they are written: by the plan, or for a model
    with so many blocks."""
    if layers is None:
        modules: Any = [(m.entry, m.scheme, m.kernel) for m in plan(spec).modules]
        entries, layers = [m.entry for m in plan(spec).modules], LLADA.shape.layers
    else:
        entries = list(FAMILIES[spec.families[0]].outline(range(layers)))
        modules = [
            next((rule.scheme for rule in reversed(spec.rules) if rule.selector.matches(e, layers)), None)
            for e in entries
        ]
    search = spec.search
    offers = [
        next((o.choices for o in reversed(search.offers) if o.selector.matches(e, layers)), ()) if search else ()
        for e in entries
    ]
    selected = [
        (use.name, use.params, [e.role for e in entries if use.selector.matches(e, layers)]) for use in spec.passes
    ]
    return (
        (spec.name, spec.families, spec.model, spec.calibrate, dict(spec.schemes), selected, offers, modules),
        (frozenset(spec.evaluate.nelbo), frozenset(spec.evaluate.tasks)),
        (frozenset(spec.emit.targets), frozenset(spec.emit.regimes), search and replace(search, offers=())),
    )


def same(recipe: Recipe, seed: int) -> None:
    old = read(recipe.text())
    for other in (recipe.text(random.Random(seed)), old.spec.text):
        for planned in (True, False):
            assert not compared(old, version(other), planned), other


def single(recipe: Recipe, seed: int) -> None:
    old = version(read(recipe.text()).spec.text)
    new = read(mutated(old.spec.text, seed))
    assert bool(compared(old, new)) == (meaning(old.spec) != meaning(new.spec)), new.spec.text
    least = Outline.of((old.spec, new.spec), ()).layers
    ever = any(meaning(old.spec, n) != meaning(new.spec, n) for n in range(least, least + 3))
    assert bool(compared(old, new, planned=False)) == ever, new.spec.text


def as_json(recipe: Recipe, seed: int) -> None:
    old = version(read(recipe.text()).spec.text)
    new = read(mutated(mutated(old.spec.text, seed), seed + 1))
    found = compared(old, new)
    before, after = plan_data(plan(old.spec)), plan_data(plan(new.spec))
    rows: list[dict[str, dict[str, Any]]] = [{m["role"]: m for m in data["modules"]} for data in (before, after)]
    changed = {role for role in rows[0] if rows[0][role] != rows[1][role] or gemm(before, role) != gemm(after, role)}
    beyond = {m.role for m in found.modules() if m.before and m.after and beside(m.before) != beside(m.after)}
    assert {m.role for m in found.modules()} - beyond <= changed <= {m.role for m in found.modules()}
    entries = [m.entry for m in plan(old.spec).modules]
    for layer in found.layers:
        selector = Selector(layer.selector)
        selected = {str(entry.role) for entry in entries if selector.matches(entry, LLADA.shape.layers)}
        assert selected == {module.role for module in layer.modules}
    for module in found.modules():
        for fate, row in ((module.before, rows[0][module.role]), (module.after, rows[1][module.role])):
            assert fate is not None
            shown = {"scheme": fate.scheme, "bits": fate.bits, "rotations": list(fate.rotations), "kernel": fate.kernel}
            assert shown.items() <= row.items()
    totals = {change.key: (change.before, change.after) for change in found.totals if not change.key.startswith("time")}
    flat = [flattened(data) for data in (before, after)]
    assert totals == {key: (flat[0][key], flat[1][key]) for key in flat[0] if flat[0][key] != flat[1][key]}
    assert {one.name for one in found.kernels if one.kind == "added"} == {*after["kernels"]} - {*before["kernels"]}
    assert {one.name for one in found.kernels if one.kind == "removed"} == {*before["kernels"]} - {*after["kernels"]}


@given(RECIPES, SEEDS)
@settings(max_examples=12, deadline=None)
def test_the_same_meaning_is_no_difference(recipe: Recipe, seed: int) -> None:
    same(recipe, seed)


def test_every_change_of_a_resolved_value_is_a_difference() -> None:
    """One by one, of a recipe that has every block; what does not check is no recipe."""
    rules = ((("blocks[*].*",), "use w8a8"), (("blocks[0..1].mlp.down", "blocks[-1].attention.*"), "use w4a4"))
    old = version(version(Recipe(rules, PASSES[0], tuple(SETTINGS.items())).text()).spec.text)
    before, told = meaning(old.spec), Counter[bool]()
    for text in mutations(old.spec.text)[::2]:
        with contextlib.suppress(RecipeError, InputError):
            new = version(text)
            differs = before != meaning(new.spec)
            assert bool(compared(old, new)) == differs, text
            told[differs] += 1
    assert told[True] > 30  # and most of the others move a statement past one that it has nothing to do with
    assert told[False] > 20


@given(RECIPES, SEEDS)
@settings(max_examples=12, deadline=None)
def test_plans_differ_as_their_json_does(recipe: Recipe, seed: int) -> None:
    as_json(recipe, seed)


@pytest.mark.slow
@pytest.mark.parametrize("check", [same, single, as_json])
def test_of_many_recipes(check: Callable[[Recipe, int], None]) -> None:
    settings(max_examples=400, deadline=None)(given(RECIPES, SEEDS)(lambda recipe, seed: check(recipe, seed)))()


def gemm(data: dict[str, Any], role: str) -> list[str]:
    return next((group for group in data["merged"] if role in group), [])


def beside(fate: Fate) -> tuple[Any, ...]:
    """What `plan --json` does not tell of a module: a scheme of the same name may have other formats."""
    return fate.weights, fate.activations, fate.offered


def flattened(data: dict[str, Any]) -> dict[str, Any]:
    found = {key: data[key] for key in ("bits_per_weight", "bits_per_weight_model")}
    found["generate.memory_bytes.total"] = data["generate"]["memory_bytes"]["total"]
    for group in ("bytes", "compile"):
        found |= {f"{group}.{key}": value for key, value in data[group].items()}
    return found
