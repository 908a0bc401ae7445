"""Three kinds of items, after the paper's three kinds of benchmarks, and the rule that splits them.

recall      questions with four choices about the invented world      (as MMLU)       answer "B. Melk"
arithmetic  word problems of two worked steps                         (as GSM8K)      answer "7+5=12; 12-3=9 #### 9"
brackets    close what is open, or finish a one-line function         (as HumanEval)  answer ")]}" or "(n+7)*3"

An item belongs to the held-out split if the hash of its key says so, whatever the seed that drew it. The key holds what
makes the item a problem of its own (fact and phrasing; template and numbers; code) and leaves out what does not (names,
order of choices), so no held-out problem is ever met in training in another dress.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from world import ATTRIBUTES, World, build_world

Split = Literal["train", "heldout"]
HELD_OUT_SHARE = 8  # one key in eight is held out

NAMES = ("Tom", "Ann", "Ben", "Eva", "Max", "Ida", "Sam", "Lea", "Kim", "Joe")
THINGS = ("apples", "books", "coins", "cards", "eggs", "shells", "stamps", "pears", "nuts", "cups")
OPEN, CLOSE = "([{", ")]}"
VARIABLES = ("n", "x", "y", "k", "a")
OPERATIONS = (("add", "+"), ("sub", "-"), ("times", "*"), ("mod", "%"))


@dataclass(frozen=True)
class Item:
    """key: decides the split. choices: for recall only, the four lines as shown; the answer is one of them."""

    key: str
    prompt: str
    answer: str
    choices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Kind:
    """A kind of items. length: tokens of the answer, with the end-of-text tokens that fill it; block: the sampler's."""

    name: str
    task: str
    length: int
    block: int
    draw: Callable[[random.Random], Item]


def split_of(key: str) -> Split:
    """The split of a key."""
    digest = hashlib.sha256(key.encode()).digest()
    return "heldout" if digest[0] % HELD_OUT_SHARE == 0 else "train"


def items(kind: Kind, split: Split, seed: int) -> Iterator[Item]:
    """Endless items of one split."""
    rng = random.Random(f"{kind.name}/{split}/{seed}")
    while True:
        item = kind.draw(rng)
        if split_of(item.key) == split:
            yield item


def recall(rng: random.Random, world: World) -> Item:
    country, attribute = rng.choice(world.countries), rng.choice(ATTRIBUTES)
    phrasing = rng.randrange(len(attribute.questions))
    value = world.facts[country, attribute.name]
    others = [v for v in world.pools[attribute.name] if v != value]
    choices = [value, *rng.sample(others, 3)]
    rng.shuffle(choices)
    lines = [f"{letter}. {choice}" for letter, choice in zip("ABCD", choices, strict=True)]
    question = attribute.questions[phrasing].format(c=country)
    return Item(
        key=f"recall {attribute.name} {country} {phrasing}",
        prompt="\n".join((f"Question: {question}", *lines, "Answer:")),
        answer=lines[choices.index(value)],
        choices=tuple(lines),
    )


def arithmetic(rng: random.Random) -> Item:
    template = rng.randrange(len(_PROBLEMS))
    numbers, text, steps, result = _PROBLEMS[template](rng)
    return Item(
        key=f"arithmetic {template} {numbers}",
        prompt=f"Problem: {text}\nSolution:",
        answer=f"{'; '.join(steps)} #### {result}",
    )


def brackets(rng: random.Random) -> Item:
    return _closing(rng) if rng.random() < 0.6 else _function(rng)


def _closing(rng: random.Random) -> Item:
    """A random walk over brackets that ends two to six deep, eighteen characters long at most."""
    target = rng.randint(2, 6)
    text, stack = "", ""
    while len(stack) < target or (len(text) < 12 and rng.random() < 0.5):
        if stack and len(text) < 12 and (len(stack) == 6 or rng.random() < 0.4):
            text, stack = text + CLOSE[OPEN.index(stack[-1])], stack[:-1]
        elif len(stack) < 6:
            text += (bracket := rng.choice(OPEN))
            stack += bracket
    answer = "".join(CLOSE[OPEN.index(b)] for b in reversed(stack))
    return Item(f"close {text}", f"Close: {text}\nAnswer:", answer)


def _function(rng: random.Random) -> Item:
    """`def add_7(n): return n+7`, or two operations in a row."""
    variable = rng.choice(VARIABLES)
    name, first = rng.choice(OPERATIONS)
    number = rng.randint(2, 19)
    name, body = f"{name}_{number}", f"{variable}{first}{number}"
    if rng.random() < 0.6:
        second, sign = rng.choice(OPERATIONS)
        other = rng.randint(2, 9)
        name, body = f"{name}_{second}_{other}", f"({body}){sign}{other}"
    return Item(f"code {name} {variable}", f"def {name}({variable}):\n    return", body)


_Problem = tuple[tuple[int, ...], str, tuple[str, str], int]


def _cast(rng: random.Random) -> tuple[str, str, str]:
    first, second = rng.sample(NAMES, 2)
    return first, second, rng.choice(THINGS)


def _buys_and_gives(rng: random.Random) -> _Problem:
    n, m, o = _cast(rng)
    a, b = rng.randint(3, 49), rng.randint(3, 49)
    c = rng.randint(2, a + b - 1)
    d = a + b
    text = f"{n} has {a} {o}. {n} buys {b} more and gives {c} to {m}. How many {o} does {n} have now?"
    return (a, b, c), text, (f"{a}+{b}={d}", f"{d}-{c}={d - c}"), d - c


def _boxes_and_losses(rng: random.Random) -> _Problem:
    n, _, o = _cast(rng)
    a, b = rng.randint(2, 9), rng.randint(2, 9)
    d = a * b
    c = rng.randint(1, d - 1)
    text = f"{n} has {a} boxes with {b} {o} in each box and loses {c}. How many {o} are left?"
    return (a, b, c), text, (f"{a}*{b}={d}", f"{d}-{c}={d - c}"), d - c


def _shop(rng: random.Random) -> _Problem:
    _, _, o = _cast(rng)
    a = rng.randint(30, 99)
    b = rng.randint(2, a - 10)
    d = a - b
    c = rng.randint(2, d - 1)
    text = f"A shop has {a} {o}. It sells {b} in the morning and {c} in the evening. How many {o} are left?"
    return (a, b, c), text, (f"{a}-{b}={d}", f"{d}-{c}={d - c}"), d - c


def _prices(rng: random.Random) -> _Problem:
    n, m, o = _cast(rng)
    a, b, c = rng.randint(2, 9), rng.randint(2, 9), rng.randint(2, 5)
    d = a + b
    text = f"{n} wants {a} {o} and {m} wants {b}. They cost {c} euros each. How many euros do they pay?"
    return (a, b, c), text, (f"{a}+{b}={d}", f"{d}*{c}={d * c}"), d * c


def _pages(rng: random.Random) -> _Problem:
    n, _, _ = _cast(rng)
    a, b, c = rng.randint(2, 9), rng.randint(2, 9), rng.randint(2, 18)
    d = a * b
    text = f"{n} reads {a} pages a day for {b} days and then {c} more pages. How many pages does {n} read?"
    return (a, b, c), text, (f"{a}*{b}={d}", f"{d}+{c}={d + c}"), d + c


def _birds(rng: random.Random) -> _Problem:
    a = rng.randint(10, 60)
    b = rng.randint(2, a - 2)
    c = rng.randint(2, 39)
    d = a - b
    text = f"There are {a} birds in a tree. {b} fly away and {c} come. How many birds are there now?"
    return (a, b, c), text, (f"{a}-{b}={d}", f"{d}+{c}={d + c}"), d + c


_PROBLEMS = (_buys_and_gives, _boxes_and_losses, _shop, _prices, _pages, _birds)

_WORLD = build_world()

KINDS = (
    Kind("recall", "mmlu", 8, 8, lambda rng: recall(rng, _WORLD)),
    Kind("arithmetic", "gsm8k", 24, 12, arithmetic),
    Kind("brackets", "humaneval", 12, 12, brackets),
)
