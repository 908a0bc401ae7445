"""The driver against lark itself: the same trees, and the same places where a text stops making sense."""

from __future__ import annotations

import random
from typing import Any

import pytest
from lark import Token as LarkToken
from lark import Tree as LarkTree
from lark.exceptions import UnexpectedCharacters, UnexpectedInput, UnexpectedToken

from qspec.language import grammar
from qspec.language.lalr import Mismatch, Token, Tree, run
from tests.language.fakes import ROOT

LINES = {
    "version": ["qspec 1", "qspec -1.5e3", "qspec"],
    "extends": ['extends "a b.qs"', "extends a"],
    "param": ["param x = 1", 'param in = "s" in 1..2', "param a = b in 1.5..2", "param x 1"],
    "layers": ["layers head keep", "layers blocks[*].{a,b}.*, module(\"x\"), * use keep", "layers use use use",
               "layers blocks[0, 4..7, -3..-1].mlp keep", "layers head", "layers x[1 keep"],
    "apply": ["apply rtn on head", "apply a() on b", "apply a(b = 1, c = $d, on = on,) on b",
              "apply a(b) on c", "apply ?"],
    "scheme_body": ["weights int4 per channel symmetric clip mse activations none", "weights $f per group $g clip 0.9",
                    "weights int(4) per block 128x128 asymmetric", "weights int4 per tensor clip none weights none",
                    "weights symmetric per token symmetric"],
    "calibrate_body": ['text "x" samples 3 length $n seed 0 mask uniform(0, $b)', "mask none mask fixed(1)",
                       'text file("a", field = $f) text rollouts(a = b, c = 1) text rollouts()', "samples samples"],
    "evaluate_body": ['nelbo on "x" samples 4 nelbo on $y task task task nelbo', "nelbo on file(\"x\")"],
    "task_body": ["shots 1 length 2 steps 3 block 4 limit $l", "shots shots"],
    "emit_body": ["kernels triton for sm_80, for regime a, b", "kernels triton"],
    "recipe_body": ['family family model "x" model $x revision "y"', "family 1"],
    "recipe_head": ["recipe recipe", "recipe"],
    "selector": ["*", "a.*.{b}", "a..b", ""],
}  # fmt: skip


def same(ours: Any, theirs: Any) -> bool:
    if isinstance(theirs, LarkTree):
        inside = len(ours.children) == len(theirs.children) and all(map(same, ours.children, theirs.children))
        placed = theirs.meta.empty or (ours.start, ours.end) == (theirs.meta.start_pos, theirs.meta.end_pos)
        return isinstance(ours, Tree) and ours.data == theirs.data and inside and placed
    if isinstance(theirs, LarkToken):
        place = (theirs.type, theirs.start_pos, theirs.end_pos)
        return isinstance(ours, Token) and ours == str(theirs) and (ours.type, ours.start, ours.end) == place
    return ours is None and theirs is None


def compare(lark: Any, text: str, start: str) -> bool:
    """Whether the text is right; fails where the two differ."""
    error = lark_error(lark, text, start)
    if error is None:
        assert same(run(grammar.tables(), text, start), lark.parse(text, start=start)), text
        return True
    with pytest.raises(Mismatch) as caught:
        run(grammar.tables(), text, start)
    if ".." in text:  # lark reads two dots where no `..` can come; we one sign
        return False
    if isinstance(error, UnexpectedToken) and error.token.type != "$END":
        assert caught.value.start == error.token.start_pos
        if error.interactive_parser is not None:
            assert caught.value.expected == error.interactive_parser.accepts()
    elif isinstance(error, UnexpectedCharacters):
        assert caught.value.start == error.pos_in_stream
    return False


def lark_error(lark: Any, text: str, start: str) -> UnexpectedInput | None:
    try:
        lark.parse(text, start=start)
    except UnexpectedInput as error:
        return error
    return None


def test_trees_and_errors_are_larks() -> None:
    lark = grammar.lark_parser(grammar.STARTS)
    rng = random.Random(11)
    good = bad = 0
    for start, texts in LINES.items():
        for text in texts:
            good += compare(lark, text, start)
            for _ in range(30):
                words = text.split(" ")
                words[rng.randrange(len(words))] = rng.choice(["keep", "$x", "x", "1..2", "mse", ",", '"', "(", ""])
                bad += not compare(lark, " ".join(words), start)
    assert good >= 25
    assert bad >= 300


def test_a_cached_table_is_what_lark_gives() -> None:
    built = grammar.compiled(grammar.lark_parser(grammar.STARTS))
    recipes = (ROOT / "recipes").glob("*.qs")
    layers = [
        line for p in recipes for line in p.read_text().split("\n") if line.startswith("layers") and "#" not in line
    ]
    assert len(layers) > 5
    for line in layers:
        assert run(built, line, "layers") == run(grammar.tables(), line, "layers")
