"""Random search problems on models that exist only as a config."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

from qspec import passes, resources
from qspec.diagnostics import Source
from qspec.language import load_source
from qspec.models.config import read_config
from qspec.models.family import DecoderShape, Family
from qspec.models.registry import FAMILIES
from qspec.plan import Plan, make_plan
from qspec.search.space import Space, find_space

SCHEMES = {
    "w2g32": "int2 per group 32 symmetric",
    "w2g64a": "int2 per group 64 asymmetric",
    "w3": "int3 per channel symmetric",
    "w3g64": "int3 per group 64 symmetric",
    "w4g64a": "int4 per group 64 asymmetric",
    "w5g32": "int5 per group 32 symmetric",
    "w8": "int8 per channel symmetric",
}
APPLIES = (
    "apply rtn() on blocks[*].*",
    "apply smooth(alpha = 0.5) on blocks[*].*\napply gptq() on blocks[*].*",
    "apply rotate_duquant(block = 32) on blocks[*].*\napply rtn() on blocks[*].*",
    "apply rotate_duquant(block = 32) on blocks[*].mlp.*\napply rtn() on blocks[*].*",
    "apply quarot(residual = false, heads = none) on blocks[*].*\napply rtn() on blocks[*].*",
)
PARTS = ("attention.q", "attention.k", "attention.v", "attention.o", "mlp.gate", "mlp.up", "mlp.down")


def family_and_shape(name: str = "llada", layers: int = 6) -> tuple[Family, DecoderShape]:
    family, shape, _ = read_config(resources.standin(name))
    return family, replace(shape, layers=layers)


def recipe(search: str, names: list[str], apply: str = APPLIES[0], activations: str = "none") -> str:
    schemes = "".join(f"scheme {n} {{\n weights {SCHEMES[n]}\n activations {activations}\n}}\n" for n in names)
    return (
        f'qspec 1\nrecipe r {{\n family llada, dream\n model "m"\n}}\n{schemes}'
        f"layers blocks[*].* use {names[0]}\n{apply}\nsearch {{\n{search}\n}}\n"
    )


def plan_of(text: str, family: Family, shape: DecoderShape, path: str = "r.qs") -> Plan:
    """By the language and the planner, as every command has it."""
    spec = load_source(Source(path, text), passes.available(), {}, FAMILIES).spec
    return make_plan(spec, family, shape, standin=True)


def space_of(
    search: str,
    names: list[str],
    layers: int = 6,
    apply: str = APPLIES[0],
    model: str = "llada",
    activations: str = "none",
) -> Space:
    return find_space(plan_of(recipe(search, names, apply, activations), *family_and_shape(model, layers)))


def random_space(draw: random.Random) -> Space:
    """Sizes, schemes, passes, offers and pins at random."""
    model, layers = draw.choice(["llada", "dream"]), draw.randint(1, 5)
    names = draw.sample(sorted(SCHEMES), draw.randint(2, 4))
    offers = [f"offer {', '.join([*names, 'keep'] if draw.random() < 0.3 else names)} on blocks[*].*"]
    if draw.random() < 0.5:
        offers.append(f"offer {draw.choice(names)} on blocks[{draw.choice([0, -1])}].*")
    if draw.random() < 0.5:
        offers.append(f"offer {', '.join(draw.sample(names, 2))} on blocks[*].mlp.down")
    if draw.random() < 0.3:
        offers.append("fused false")
    return space_of("\n".join(offers), names, layers, draw.choice(APPLIES), model)


FOLDER = Path()
