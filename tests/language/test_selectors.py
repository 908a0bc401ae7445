"""Selectors and rules against modules whose roles are written out here by hand."""

from __future__ import annotations

import random
import re
import time
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qspec.diagnostics import RecipeError
from qspec.language.layers import verify
from qspec.language.layout import Layout
from qspec.language.patterns import Pattern, compiled, problem
from qspec.language.selectors import ModuleTable, Selector
from qspec.models.family import ModuleEntry, Role
from qspec.models.llada import LLADA
from tests.language.fakes import load, recipe
from tests.models.layout import LLADA_8B

PARTS = ["attention.q", "attention.k", "attention.v", "attention.o", "mlp.gate", "mlp.up", "mlp.down"]


def modules(layers: int) -> list[ModuleEntry]:
    inner = [(f"blocks[{b}].{p}", Role(p, b), f"m.{b}.{p.split('.')[1]}", "x") for b in range(layers) for p in PARTS]
    rows = [("embedding", Role("embedding"), "m.wte", ""), *inner, ("head", Role("head"), "m.ff_out", "h")]
    for name, role, _, _ in rows:
        assert str(role) == name
    return [ModuleEntry(role, module, 8, 8, False, site) for _, role, module, site in rows]


def selected(text: str, layers: int = 4) -> list[str]:
    return [str(e.role) for e in modules(layers) if Selector(text).matches(e, layers)]


def blocks(text: str, layers: int) -> list[int]:
    return [e.role.block for e in modules(layers) if e.role.part == "mlp.up" and Selector(text).matches(e, layers)]  # type: ignore[misc]


@pytest.mark.parametrize(
    ("text", "roles"),
    [
        ("head", ["head"]),
        ("head, embedding", ["embedding", "head"]),
        ("blocks[3].attention.q", ["blocks[3].attention.q"]),
        ("blocks[1].mlp.{gate,up}", ["blocks[1].mlp.gate", "blocks[1].mlp.up"]),
        ("blocks[1].{attention,mlp}.{o,down}", ["blocks[1].attention.o", "blocks[1].mlp.down"]),
        ("blocks[0].mlp.*", ["blocks[0].mlp.gate", "blocks[0].mlp.up", "blocks[0].mlp.down"]),
        ("blocks[2].*", [f"blocks[2].{p}" for p in PARTS]),
        ("blocks[2].*.*", [f"blocks[2].{p}" for p in PARTS]),
        ("blocks[2].*.down", ["blocks[2].mlp.down"]),
        ("blocks[0].mlp.down, blocks[0].mlp.down, head", ["blocks[0].mlp.down", "head"]),
        ('module("m.ff_out")', ["head"]),
        (r'module("m\.[13]\.down")', ["blocks[1].mlp.down", "blocks[3].mlp.down"]),
        ('module("m.ff")', []),
        ('module("ff_out")', []),
        ("blocks[*].mlp", []),
        ("blocks.mlp.down", []),
        ("blocks[0]", []),
        ("head[0]", []),
        ("blocks[*].mlp.down.weight", []),
    ],
)
def test_what_is_selected(text: str, roles: list[str]) -> None:
    assert selected(text) == roles


def test_star_is_everything() -> None:
    assert len(selected("*")) == 4 * 7 + 2


@pytest.mark.parametrize(
    ("text", "layers", "expected"),
    [
        ("blocks[*].mlp.up", 3, [0, 1, 2]),
        ("blocks[-1].mlp.up", 5, [4]),
        ("blocks[-3..-1].mlp.up", 5, [2, 3, 4]),
        ("blocks[0, 4..7, -1].mlp.up", 10, [0, 4, 5, 6, 7, 9]),
        ("blocks[2..-2].mlp.up", 6, [2, 3, 4]),
        ("blocks[0..0].mlp.up", 2, [0]),
        ("blocks[1, 1, 1].mlp.up", 2, [1]),
    ],
)
def test_indices(text: str, layers: int, expected: list[int]) -> None:
    assert blocks(text, layers) == expected


INDEX = st.sampled_from(["*", "0", "2", "-1", "-4", "5", "0..2", "-3..-1", "1..-1", "2..9"])
STEP = st.one_of(
    st.sampled_from(["blocks", "attention", "mlp", "q", "down", "experts", "head", "embedding", "*", "{gate,up,head}"]),
    st.lists(INDEX, min_size=1, max_size=3).map(lambda parts: f"blocks[{', '.join(parts)}]"),
    INDEX.map(lambda part: f"experts[{part}]"),
)
TERM = st.lists(STEP, min_size=1, max_size=4).map(".".join)
RAW = st.sampled_from([r'module("m\.[0-9]\..*")', 'module("m.ff_out")', 'module("x")'])


@given(st.lists(st.one_of(TERM, TERM, RAW), min_size=1, max_size=3).map(", ".join), st.sampled_from([1, 3, 6]))
@settings(max_examples=300, deadline=None)
def test_a_table_finds_what_matches(text: str, layers: int) -> None:
    experts = [ModuleEntry(Role("mlp.experts.down", 0, e), f"m.0.e{e}.down", 8, 8, False, "x") for e in range(3)]
    entries = [*modules(layers), *experts]
    entries[0] = replace(entries[0], tied=entries.pop(7 * layers + 1))
    selector = Selector(text)
    one_by_one = tuple(m for m, entry in enumerate(entries) if selector.matches(entry, layers))
    table = ModuleTable(entries, layers)
    assert table.select(selector) == one_by_one
    assert table.select(selector) == one_by_one  # remembered


def test_experts() -> None:
    def entry(expert: int) -> ModuleEntry:
        return ModuleEntry(Role("mlp.experts.down", 2, expert), f"m.2.{expert}", 8, 8, False, "x")

    assert str(entry(5).role) == "blocks[2].mlp.experts[5].down"
    assert Selector("blocks[*].mlp.experts[*].down").matches(entry(5), 4)
    assert Selector("blocks[2].mlp.experts[4..6].*").matches(entry(5), 4)
    assert not Selector("blocks[2].mlp.experts[0].down").matches(entry(5), 4)
    assert not Selector("blocks[2].mlp.experts.down").matches(entry(5), 4)


def test_selectors_are_equal_when_they_read_equal() -> None:
    spec = load(recipe(rules="\nlayers blocks[ * ] . { mlp } . *,head,embedding keep\nlayers blocks[*].* use w8a8\n"))
    rule = spec.spec.rules[0]
    assert rule.selector == Selector("blocks[*].{mlp}.*, head, embedding")
    assert rule.text == "layers blocks[*].{mlp}.*, head, embedding keep"


@pytest.mark.parametrize("text", ["", "blocks[", "head keep", "blocks[1].", "module(x)", 'module("(a+)+")', "a..b"])
def test_a_bad_selector_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError, match=r"selector|cannot be used"):
        Selector(text).terms  # noqa: B018


@pytest.mark.parametrize(
    "pattern",
    ["(a+)+", "(a|a)*", "(.*)*", "a**", "a+?+", ".*.*.*.*", r"(a)\1", "(?=a)a", "(?i)a", "a{2}{3}", "(", ")", "[z-a]",
     "", "a" * 201, r"\b", r"\xff", "(" * 9 + ")" * 9, "é", "*a", "(?)", "a|*", "(+a)", "a{3,2}", "[a--z]", "(a))("],
)  # fmt: skip
def test_patterns_that_are_refused(pattern: str) -> None:
    assert problem(pattern)


@pytest.mark.parametrize(
    "pattern", [r"model\.blocks\.(0|1|31)\.ff_out", "m.[0-9]+.up", "a?b{2,3}", ".*ff_out", "[^a]b"]
)
def test_patterns_that_are_accepted(pattern: str) -> None:
    assert problem(pattern) is None


# Every way through the groups fails at the end of the name, where Python's own `re` would try them all.
SLOW = ["(.|m)?" * 33, "(m|mo|o|od|d|de)" * 12 + "z", "(a?a?)" * 30 + "b", "(m|mo|mod).*e.*e.*z",
        ".{0,999}" * 3 + "(.|m)?" * 28 + "z"]  # fmt: skip


@pytest.mark.parametrize("pattern", SLOW, ids=range(len(SLOW)))
def test_no_accepted_pattern_is_slow(pattern: str) -> None:
    assert problem(pattern) is None
    start = time.process_time()
    for name in ("model.transformer.blocks.31." + "e" * 60, "mode" * 40, "a" * 70):
        assert not compiled(pattern).fullmatch(name)
    assert time.process_time() - start < 5


PIECES = ["a", "b", "m", ".", "[ab]", "[^a]", "[a-c]", "[-a]", "[b-]", r"\.", r"\d", r"\W", "a*", "b+", ".?", "m{2}",
          ".{1,3}", "a{0,2}", "b{1,}", "(", "(", ")", ")", ")?", "|", "|", "?", "*", ""]  # fmt: skip


def test_patterns_mean_what_they_mean_to_python() -> None:
    rng = random.Random(20240905)
    accepted = matched = 0
    while accepted < 2000:
        pattern = "".join(rng.choice(PIECES) for _ in range(rng.randint(1, 9)))
        if problem(pattern):
            continue
        accepted += 1
        automaton, python = Pattern(pattern), re.compile(pattern, re.ASCII)
        for _ in range(12):
            text = "".join(rng.choice("aabbmc.-1é\n") for _ in range(rng.randint(0, 7)))
            expected = python.fullmatch(text) is not None
            assert automaton.fullmatch(text) is expected, (pattern, text)
            matched += expected
    assert matched > 1000


# --- rules ---


def layout(rules: str, layers: int, apply: str = "\napply rtn() on *\n"):  # type: ignore[no-untyped-def]
    spec = load(recipe(rules=rules, apply=apply)).spec
    return verify(spec, list(LLADA.outline(range(layers))), layers)


def test_later_rules_win() -> None:
    found = layout("\nlayers blocks[*].* use w8a8\nlayers blocks[-1].mlp.down keep\nlayers head keep\n", 3)
    by_role = {str(e.role): rule for e, rule in zip(found.modules, found.decided, strict=True)}
    assert by_role["embedding"] is None
    assert by_role["head"].scheme is None
    assert by_role["blocks[2].mlp.down"].scheme is None
    assert by_role["blocks[1].mlp.down"].scheme.name == "w8a8"
    assert [(c.matched, c.decides) for c in found.counts] == [(21, 20), (1, 1), (1, 1)]


def test_a_rule_in_the_middle_can_be_half_shadowed() -> None:
    rules = "\nlayers blocks[*].* use w8a8\nlayers blocks[0..1].* keep\nlayers blocks[1..2].* use w8a8\n"
    found = layout(rules, 4)
    assert [(c.matched, c.decides) for c in found.counts] == [(28, 7), (14, 7), (14, 14)]
    assert found.warnings == ()


@pytest.mark.parametrize(
    ("selector", "layers", "message"),
    [
        ("blocks[0, 40].*", 32, "there is no block 40: the model has 32 blocks"),
        ("blocks[-5].*", 4, "there is no block -5: the model has 4 blocks"),
        ("blocks[2..9].*", 4, "there is no block 9: the model has 4 blocks"),
        ("blocks[3..-3].*", 4, "the range 3..-3 holds no block of a model with 4 blocks"),
    ],
)
def test_blocks_that_the_model_does_not_have(selector: str, layers: int, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        layout(f"\nlayers blocks[*].* use w8a8\nlayers {selector} keep\n", layers)
    assert [(d.code, d.message) for d in caught.value.diagnostics] == [("QS032", message)]


def test_a_pattern_that_matches_no_module_of_the_model() -> None:
    with pytest.raises(RecipeError) as caught:
        layout('\nlayers blocks[*].* use w8a8\nlayers module("model.layers.0.up_proj") keep\n', 4)
    assert [d.code for d in caught.value.diagnostics] == ["QS030"]


def test_a_rule_that_only_this_model_shadows_is_a_warning() -> None:
    found = layout("\nlayers blocks[0..1].* keep\nlayers blocks[*].* use w8a8\n", 2)
    assert [d.code for d in found.warnings] == ["QS034"]


# --- a head that is the embedding ---


def test_on_a_tied_model_head_names_the_embeddings_tensor() -> None:
    for rule in ("head, embedding", "head", "embedding", 'module("model.transformer.ff_out")'):
        found = tied_layout(f"\nlayers blocks[*].* use w8a8\nlayers {rule} keep\n")
        assert found.warnings == ()
        rule_of = {str(entry.role): decided for entry, decided in zip(found.modules, found.decided, strict=True)}
        assert "head" not in rule_of
        assert rule_of["embedding"] is not None
        assert found.counts[-1].matched == found.counts[-1].decides == 1


def test_on_a_tied_model_two_rules_may_keep_the_one_tensor() -> None:
    assert tied_layout("\nlayers blocks[*].* use w8a8\nlayers head keep\nlayers embedding keep\n").warnings == ()


def tied_layout(rules: str) -> Layout:
    shape = replace(LLADA.shape(LLADA_8B), layers=2, tied=True)
    return verify(load(recipe(rules=rules, apply="\napply rtn() on *\n")).spec, LLADA.modules(shape), 2)
