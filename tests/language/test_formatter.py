"""The canonical format: same meaning, same comments, the same again when formatted twice."""

from __future__ import annotations

import random

import pytest
from hypothesis import HealthCheck, given, settings

from qspec.diagnostics import RecipeError, Source
from qspec.language import syntax as s
from qspec.language.formatter import format_file, format_source
from qspec.language.grammar import lark_parser
from qspec.language.parser import parse
from tests.language.fakes import ROOT, recipe
from tests.language.strategies import FILES

RECIPES = sorted((ROOT / "recipes").rglob("*.qs"))


def parsed(text: str) -> s.File:
    file, problems = parse(Source("r.qs", text))
    assert problems == ()
    return file


def comments_of(file: s.File) -> list[str]:
    """Every comment of a tree, in the order in which it is written."""
    found: list[str] = []

    def visit(items: tuple[s.Item, ...]) -> None:
        for item in items:
            found.extend(item.comments.before)
            if isinstance(item.node, s.Block):
                found.extend([item.node.opening] if item.node.opening else [])
                visit(item.node.items)
                found.extend(item.node.closing.before)
            found.extend([item.comments.after] if item.comments.after else [])

    visit(file.items)
    return [*found, *file.closing.before]


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(FILES)
def test_a_tree_survives_formatting_and_parsing(file: s.File) -> None:
    text = format_file(file)
    again = parsed(text)
    assert again.items == file.items
    assert list(again.comments) == comments_of(file)
    assert format_source(text) == text


def loosened(text: str, rng: random.Random) -> str:
    """The same recipe, badly laid out: other spaces, blank lines, lines broken inside brackets, comments
    added."""
    lines = []
    for line in text.split("\n"):
        code, hash_, comment = line.partition("#")
        quoted = '"' in code
        if not quoted:
            code = code.replace("(", rng.choice(["(", "( ", "(\n   "])).replace(", ", rng.choice([",", ", ", ",\n "]))
            code = code.replace("  ", rng.choice([" ", "   ", "\t"]))
        lines.append(" " * rng.randrange(4) + code + hash_ + comment)
        lines += [""] * rng.randrange(3) + (["   # added"] if rng.random() < 0.1 else [])
    return "\n".join(lines)


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_layout_does_not_matter(path) -> None:  # type: ignore[no-untyped-def]
    text = path.read_text(encoding="utf-8")
    rng = random.Random(path.stem)
    for _ in range(20):
        loose = loosened(text, rng)
        formatted = format_source(loose)
        assert parsed(formatted) == parsed(loose)
        assert format_source(formatted) == formatted
        assert parsed(formatted).items == parsed(text).items


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_recipes_are_canonical_and_fit_the_whole_grammar(path) -> None:  # type: ignore[no-untyped-def]
    text = path.read_text(encoding="utf-8")
    assert format_source(text) == text
    assert len(lark_parser("file").parse(text).children) == len(parsed(text).items)


def test_whole_layout() -> None:
    loose = (
        "qspec   1\n# about\nrecipe  r{family llada,dream model \"m\" # the model\n}\n"
        "scheme w8a8 { # opening\nweights int8 per channel symmetric clip mse\n"
        "activations int($b) per token clip 0.9 # a\n"
        "# before the brace\n}# after\n"
        "layers blocks[ * ] . { q , k }, head  keep # one\nlayers blocks[0,4 .. 7,-1].* use w8a8 # two\n\n\n"
        "apply rtn on blocks[*].*\napply smooth(\n  alpha=0.5, # strength\n) on blocks[*].*\n"
        "evaluate{nelbo on \"c4\" samples 3 task mmlu task gsm8k{shots 4 length 256}}\n# the end"
    )  # fmt: skip
    assert format_source(loose) == (
        "qspec 1\n\n# about\nrecipe r {\n  family llada, dream\n  model  \"m\"  # the model\n}\n\n"
        "scheme w8a8 {  # opening\n  weights     int8    per channel symmetric clip mse\n"
        "  activations int($b) per token             clip 0.9  # a\n  # before the brace\n}  # after\n\n"
        "layers blocks[*].{q,k}, head keep      # one\nlayers blocks[0, 4..7, -1].* use w8a8  # two\n\n"
        "apply rtn() on blocks[*].*\n# strength\napply smooth(alpha = 0.5) on blocks[*].*\n\n"
        "evaluate {\n  nelbo on \"c4\" samples 3\n  task  mmlu\n  task  gsm8k { shots 4  length 256 }\n}\n# the end\n"
    )  # fmt: skip


def test_calibration_layout() -> None:
    loose = (
        "calibrate{draws 2 weigh certainty,unmasked 0.5\n"
        'text rollouts(steps=8,prompts=file("a",field=$f))mask prefix(0,1)}'
    )
    assert format_source(loose) == (
        "calibrate {\n  draws 2\n  weigh certainty, unmasked 0.5\n"
        '  text  rollouts(steps = 8, prompts = file("a", field = $f))\n  mask  prefix(0, 1)\n}\n'
    )


def test_an_error_keeps_the_text_alone() -> None:
    with pytest.raises(RecipeError) as caught:
        format_source(recipe(rules="\nlayers head kep\n"))
    assert [d.code for d in caught.value.diagnostics] == ["QS005"]


def test_empty_text_stays_empty() -> None:
    assert format_source("") == ""
    assert format_source("\n\n") == ""
    assert format_source("# only this") == "# only this\n"
