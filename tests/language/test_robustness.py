"""Recipes that nobody wrote: mutated ones never give a traceback, never hang, and say something."""

from __future__ import annotations

import random
import sys
import time

import pytest

from qspec.diagnostics import RecipeError, Source, render_text, to_github, to_json
from qspec.language import load_source, understand
from qspec.language.formatter import format_source
from qspec.language.grammar import lark_parser
from qspec.language.parser import MAX_BYTES, decode, parse
from qspec.models.registry import FAMILIES
from tests.language.fakes import PASSES, ROOT, codes, recipe

TOKENS = ["{", "}", "(", ")", "[", "]", ",", ".", "..", "*", "#", '"', "$", "=", "-", "1e9", "128x128", "é", "\n", "\t",
          "qspec", "layers", "apply", "use", "keep", "on", "scheme", "param", "extends", "none", "mse", "module", "$x",
          "blocks[*]", "recipe", "task", "0", "-1", "999999999999", "per", "group", "\x00", "\u202e"]  # fmt: skip


def seeds() -> list[str]:
    """Mostly a short recipe; one with every construct, and a real one."""
    every = (ROOT / "tests" / "language" / "every_construct.qs").read_text(encoding="utf-8")
    real = (ROOT / "recipes" / "llada_mixed.qs").read_text(encoding="utf-8")
    return [recipe(), recipe(), recipe(), every, real]


def mutated(text: str, rng: random.Random) -> bytes:
    """One to four changes: flipped bytes, lines dropped, doubled or swapped, tokens replaced, added or
    cut."""
    for _ in range(rng.randint(1, 4)):
        lines = text.split("\n")
        at = rng.randrange(len(lines))
        words = lines[at].split(" ")
        match rng.randrange(8):
            case 0:
                del lines[at]
            case 1:
                lines.insert(at, lines[rng.randrange(len(lines))])
            case 2:
                other = rng.randrange(len(lines))
                lines[at], lines[other] = lines[other], lines[at]
            case 3:
                words[rng.randrange(len(words))] = rng.choice(TOKENS)
                lines[at] = " ".join(words)
            case 4:
                lines[at] = " ".join(rng.sample(words, len(words)))
            case 5:
                place = rng.randrange(len(lines[at]) + 1)
                lines[at] = lines[at][:place] + rng.choice(TOKENS) + lines[at][place:]
            case 6:
                place = rng.randrange(len(lines[at]) + 1)
                lines[at] = lines[at][:place]
            case 7:
                data = bytearray("\n".join(lines).encode("utf-8", "surrogateescape"))
                if data:
                    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
                lines = data.decode("utf-8", "surrogateescape").split("\n")
        text = "\n".join(lines)
    return text.encode("utf-8", "surrogateescape")


@pytest.mark.parametrize("count", [2_500, pytest.param(10_000, marks=pytest.mark.slow)])
def test_mutations_are_read_or_diagnosed(count: int) -> None:
    rng = random.Random(20240905)
    texts = seeds()
    outcomes = {"good": 0, "bad": 0}
    slowest = 0.0
    for i in range(count):
        data = mutated(texts[i % len(texts)], rng)
        start = time.perf_counter()
        outcomes[_outcome(data)] += 1
        slowest = max(slowest, time.perf_counter() - start)
    assert outcomes["good"] > count / 50  # the mutations are not all hopeless
    assert outcomes["bad"] > count / 2
    assert slowest < 5.0


def _outcome(data: bytes) -> str:
    source, problems = decode(data, "m.qs")
    if problems:
        assert render_text(problems, {source.path: source})
        return "bad"
    error = error_of(source)
    if error is None:
        return "good"
    assert "error[QS" in render_text(error.diagnostics, error.sources)
    if len(error.diagnostics) % 3 == 0:
        assert to_json(error.diagnostics, error.sources)
        assert to_github(error.diagnostics, error.sources)
    return "bad"


def error_of(source: Source) -> RecipeError | None:
    try:
        load_source(source, PASSES, {}, FAMILIES)
    except RecipeError as error:
        return error
    return None


def test_what_parses_is_in_the_whole_grammar_and_can_be_formatted() -> None:
    rng = random.Random(7)
    whole = lark_parser("file")
    text = seeds()[3]
    parsed = 0
    for _ in range(300):
        source, problems = decode(mutated(text, rng), "m.qs")
        file, found = parse(source)
        if problems or found:
            continue
        parsed += 1
        whole.parse(source.text)
        again, _ = parse(Source("m.qs", format_source(source.text)))
        assert again == file
    assert parsed > 20


@pytest.mark.parametrize(
    "text",
    [
        "{" * 100_000,
        "(" * 100_000,
        "layers " + "blocks[" * 50_000,
        "layers " + "{" * 50_000 + " keep",
        '"' * 99_999,
        "evaluate {\n" * 3000,
        "a " * 200_000,
        "\n" * 500_000,
        "layers " + ",".join(["blocks[*].*"] * 20_000) + " keep",
        "qspec 1\n" + "layers head keep\n" * 30_000,
        "#" * 1_000_000,
        "param x = 1\n" * 4000,
        "scheme " + "a" * 500_000 + " {\n}\n",
    ],
    ids=range(13),
)
def test_hostile_sizes_end_soon(text: str) -> None:
    start = time.perf_counter()
    assert codes(text)
    assert time.perf_counter() - start < 20


def calls(text: str) -> int:
    """Python functions that are called to find a recipe's problems: work, however busy the machine is."""
    count = 0

    def follow(_: object, event: str, __: object) -> None:
        nonlocal count
        count += event == "call"

    source = Source("many.qs", text)
    before = sys.getprofile()
    sys.setprofile(follow)
    try:
        found = understand(source, PASSES, {}, FAMILIES)
        render_text(found.problems, found.merged.sources)
    finally:
        sys.setprofile(before)
    return count


@pytest.mark.parametrize(
    "statement",
    [
        "apply smooth(alpha = 0.{i:05d}) on blocks[{b}].*",
        "apply rtn() on blocks[*].*",  # clashes with those before it
        'layers module("a{i}|m.q") use w8a8',
        'layers module("a{i}"), module("b{i}.*") use w8a8',
        "layers blocks[{b}].mlp.* use w8a8",  # later ones shadow it
        "layers blocks[*].mlp.ub{i} use w8a8",  # there is no such role; with a fix
    ],
    ids=range(6),
)
def test_work_is_linear_in_the_number_of_statements(statement: str) -> None:
    def text(n: int) -> str:
        return recipe("\n".join(statement.format(i=i, b=i % 4) for i in range(n)))

    calls(text(2))  # the grammar's tables are read once
    once, four = calls(text(60)), calls(text(240))
    assert four < 5 * once


def test_too_many_bytes_are_not_parsed() -> None:
    _, problems = decode(b"#" * (MAX_BYTES + 1), "big.qs")
    assert [d.code for d in problems] == ["QS002"]


def test_decoding() -> None:
    assert decode(b"\xef\xbb\xbfqspec 1\r\nlayers head keep\r", "r.qs")[0].text == "qspec 1\nlayers head keep\n"
    assert [d.code for d in decode(b"qspec 1\n\xff", "r.qs")[1]] == ["QS001"]
    assert [d.code for d in decode("qspec 1 # \u202e".encode(), "r.qs")[1]] == ["QS001"]
    assert [d.code for d in decode(b"qspec 1\n\x1b[31m", "r.qs")[1]] == ["QS001"]
    assert decode("# ünï 漢字 🙂".encode(), "r.qs")[1] == []
