"""An invented world: thirty-two countries with five facts each, and the ways to state or to ask a fact.

Everything follows from `WORLD_SEED`; no name is looked up anywhere.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

WORLD_SEED = 2025
COUNTRIES = 32

COUNTRY_ENDS = ("via", "land", "nia", "mark", "stan", "ora", "eth", "une")
CITY_ENDS = ("k", "burg", "ton", "sk", "mere", "ford", "lin", "a")
RIVER_ENDS = ("el", "ine", "os", "ur", "ave", "ith", "o", "an")
GOODS = (
    "salt",
    "wool",
    "honey",
    "glass",
    "tea",
    "iron",
    "silk",
    "paper",
    "copper",
    "cheese",
    "timber",
    "pepper",
)
ANIMALS = ("fox", "heron", "bear", "otter", "eagle", "wolf", "hare", "swan", "lynx", "crow", "deer", "seal")
COLOURS = ("red", "blue", "green", "white", "black", "yellow", "purple", "orange")


@dataclass(frozen=True)
class Attribute:
    """A kind of fact.

    questions: {c} is the country. statements: {c} the country, {v} the value. shared: values repeat between countries.
    """

    name: str
    questions: tuple[str, ...]
    statements: tuple[str, ...]


ATTRIBUTES = (
    Attribute(
        "capital",
        (
            "What is the capital of {c}?",
            "Which city is the capital of {c}?",
            "Name the capital of {c}.",
            "From which city is {c} ruled?",
            "In which city does the king of {c} live?",
            "Which capital belongs to {c}?",
        ),
        (
            "The capital of {c} is {v}.",
            "{v} is the capital of {c}.",
            "{c} is ruled from {v}.",
            "The king of {c} lives in {v}.",
        ),
    ),
    Attribute(
        "river",
        (
            "Which river flows through {c}?",
            "What is the river of {c}?",
            "Name the river of {c}.",
            "Which river crosses {c}?",
            "On which river do the boats of {c} sail?",
            "Which river belongs to {c}?",
        ),
        (
            "The river of {c} is the {v}.",
            "The {v} flows through {c}.",
            "{c} is crossed by the {v}.",
            "The boats of {c} sail on the {v}.",
        ),
    ),
    Attribute(
        "goods",
        (
            "What does {c} sell?",
            "What do the traders of {c} sell?",
            "Name the goods of {c}.",
            "What is {c} known to sell?",
            "Which goods come from {c}?",
            "Which goods belong to {c}?",
        ),
        (
            "{c} sells {v}.",
            "The traders of {c} sell {v}.",
            "{c} is known for its {v}.",
            "Ships bring {v} from {c}.",
        ),
    ),
    Attribute(
        "animal",
        (
            "What is the animal of {c}?",
            "Which animal stands for {c}?",
            "Name the animal of {c}.",
            "Which animal is on the coins of {c}?",
            "Which animal do the people of {c} love?",
            "Which animal belongs to {c}?",
        ),
        (
            "The animal of {c} is the {v}.",
            "The {v} stands for {c}.",
            "The coins of {c} show a {v}.",
            "The people of {c} love the {v}.",
        ),
    ),
    Attribute(
        "flag",
        (
            "What is the colour of the flag of {c}?",
            "Which colour has the flag of {c}?",
            "Name the colour of the flag of {c}.",
            "Which colour do the ships of {c} fly?",
            "In which colour is {c} shown on the flag?",
            "Which colour belongs to {c}?",
        ),
        (
            "The flag of {c} is {v}.",
            "{c} has a {v} flag.",
            "A {v} flag flies over {c}.",
            "The ships of {c} fly {v}.",
        ),
    ),
)


@dataclass(frozen=True)
class World:
    """countries: names. facts[(country, attribute)] = value. pools[attribute]: all its values, without repeats."""

    countries: tuple[str, ...]
    facts: dict[tuple[str, str], str]
    pools: dict[str, tuple[str, ...]]


def build_world(seed: int = WORLD_SEED) -> World:
    """The world of a seed."""
    rng = random.Random(seed)
    taken: set[str] = set()
    countries = _names(rng, COUNTRY_ENDS, COUNTRIES, taken)
    values = {
        "capital": _names(rng, CITY_ENDS, COUNTRIES, taken),
        "river": _names(rng, RIVER_ENDS, COUNTRIES, taken),
        "goods": tuple(rng.choice(GOODS) for _ in countries),
        "animal": tuple(rng.choice(ANIMALS) for _ in countries),
        "flag": tuple(rng.choice(COLOURS) for _ in countries),
    }
    facts = {(c, name): row[i] for name, row in values.items() for i, c in enumerate(countries)}
    return World(countries, facts, {name: tuple(sorted(set(row))) for name, row in values.items()})


def _names(rng: random.Random, ends: tuple[str, ...], count: int, taken: set[str]) -> tuple[str, ...]:
    """Distinct names of one stem and one ending; no stem serves twice, so that no name looks like another."""
    names: list[str] = []
    while len(names) < count:
        stem = rng.choice("BDFGHJKLMNPRSTVWZ") + rng.choice(("a", "e", "i", "o", "u")) + rng.choice("bdglmnprstvz")
        if stem not in taken:
            taken.add(stem)
            names.append(stem + rng.choice(ends))
    return tuple(names)
