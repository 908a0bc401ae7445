"""Plain text about the invented world, and solved problems as text: for training, calibration and likelihoods."""

from __future__ import annotations

import random
from collections.abc import Iterator

from tasks import KINDS, Item, Split, items, split_of
from world import ATTRIBUTES, World, build_world

BRIDGES = (
    "Travellers tell of it.",
    "Every child knows this.",
    "So it is written.",
    "It has been so for many years.",
    "Nobody knows why.",
)


def documents(split: Split, seed: int) -> Iterator[str]:
    """Endless documents of one split, each ending with a newline: two in five are prose, the others solved problems."""
    world = build_world()
    rng = random.Random(f"corpus/{split}/{seed}")
    problems = {kind.name: items(kind, split, seed) for kind in KINDS}
    while True:
        if rng.random() < 0.4:
            text = _prose(rng, world)
            if split_of(text) == split:
                yield text
        else:
            yield solved(next(problems[rng.choice(KINDS).name]))


def solved(item: Item) -> str:
    """An item as text."""
    return f"{item.prompt} {item.answer}\n"


def _prose(rng: random.Random, world: World) -> str:
    """Three to six sentences about one country, or about two that are compared."""
    country = rng.choice(world.countries)
    sentences = [_fact(rng, world, country) for _ in range(rng.randint(2, 4))]
    if rng.random() < 0.5:
        sentences.append(_compared(rng, world, country, rng.choice(world.countries)))
    if rng.random() < 0.5:
        sentences.insert(rng.randint(1, len(sentences)), rng.choice(BRIDGES))
    return " ".join(dict.fromkeys(sentences)) + "\n"


def _fact(rng: random.Random, world: World, country: str) -> str:
    attribute = rng.choice(ATTRIBUTES)
    return rng.choice(attribute.statements).format(c=country, v=world.facts[country, attribute.name])


def _compared(rng: random.Random, world: World, one: str, other: str) -> str:
    attribute = rng.choice(("goods", "animal", "flag"))
    mine, theirs = world.facts[one, attribute], world.facts[other, attribute]
    if one == other or mine != theirs:
        return f"{other} has {theirs} as its {attribute}, and {one} has {mine}."
    return f"Both {one} and {other} have {mine} as their {attribute}."
