"""Words that may come next: names of the recipe and of the model's roles, at the places that take them."""

from __future__ import annotations

import re

import pytest

from qspec import passes
from qspec.diagnostics import Source
from qspec.language.completion import BEGUN, Completion, Names, completions
from qspec.language.fields import settings
from qspec.language.merge import merge
from qspec.language.spec import TASKS, Rollouts
from qspec.models.known import known_models
from qspec.models.registry import FAMILIES
from tests.language.fakes import ROOT

RECIPE = """qspec 1
param alpha = 0.5 in 0..1
param text = "wikitext2"
scheme w4 {
  weights int4 per group 128 asymmetric
}
scheme w8 {
  weights int8 per channel
}
layers blocks[*].* use w4
"""
PARTS = ["gate", "up", "down"]
MIXED = ["router", "experts[*]", "shared"]
KNOWN = ["llada", "dream", "sdar", "fast_dllm", "llada_moe", "sdar_moe", "llada2", "diffusion_gemma"]


def found(text: str) -> list[Completion]:
    """At the end of the text, which stands behind the recipe with its last line begun anew."""
    source = Source("r.qs", RECIPE + text)
    names = Names.of(merge(source), passes.available(), FAMILIES, ["base.qs"])
    return completions(source, len(source.text), names)


def words(text: str) -> list[str]:
    return [one.word for one in found(text)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("layers ", ["embedding", "blocks[*]", "head", "module"]),
        ("layers bl", ["embedding", "blocks[*]", "head", "module"]),
        ("layers head, e", ["embedding", "blocks[*]", "head", "module"]),
        ("layers blocks[0].", ["attention", "mlp", "*"]),
        ("layers blocks[0, 4..7, -1].mlp.do", [*PARTS, *MIXED, "*"]),
        ("layers blocks[*].{attention,mlp}.", ["q", "k", "v", "o", *PARTS, *MIXED, "*"]),
        ("layers blocks[*].*.", ["q", "k", "v", "o", *PARTS, *MIXED, "*"]),
        ("layers blocks[*].mlp.{gate,", [*PARTS, *MIXED]),
        ("layers blocks[*].mlp.down.", []),
        ("layers blocks[*].wrong.", []),
        ("layers head use ", ["w4", "w8"]),
        ("layers head use w", ["w4", "w8"]),
        ("apply smooth(al", ["alpha"]),
        ("apply smooth(alpha = ", ["search", "$alpha", "$text"]),
        ("apply smooth(alpha = $al", ["search", "$alpha", "$text"]),
        ("apply smooth() on ", ["embedding", "blocks[*]", "head", "module"]),
        ("apply gptq(damp = 0.1) on blocks[*].att", ["attention", "mlp", "*"]),
        ("apply gptq(order = ", ["activation", "natural", "$alpha", "$text"]),
        ("recipe r {\n  family ", KNOWN),
        ("recipe r {\n  family llada, ", KNOWN),
        ("search {\n  offer ", ["w4", "w8", "keep"]),
        ("search {\n  offer w4, ", ["w4", "w8", "keep"]),
        ("search {\n  offer w4, w8 on blocks[*].mlp.{up,", [*PARTS, *MIXED]),
        ("search {\n  budget 4.25 ", ["bits", "KiB", "MiB", "GiB", "us", "ms"]),
        ("search {\n  budget 12 ms for ", ["block_decode", "full_sequence"]),
        ("search {\n  loss ", ["kl", "nelbo", "task"]),
        ("search {\n  loss task ", list(TASKS)),
        ("search {\n  fused ", ["true", "false", "$alpha", "$text"]),
        ("evaluate {\n  task ", list(TASKS)),
        ("evaluate {\n  require ", [*TASKS, "nelbo"]),
        ('evaluate {\n  nelbo on "', ["c4", "pile", "wikitext2"]),
        ('calibrate {\n  text "wiki', ["c4", "pile", "wikitext2"]),
        ('calibrate {\n  text rollouts(prompts = "', ["c4", "pile", "wikitext2"]),
        ("calibrate {\n  text rollouts(", list(settings(Rollouts))),
        ("emit {\n  kernels ", ["triton"]),
        ("emit {\n  kernels triton for sm_90, ", ["sm_80", "sm_89", "sm_90", "sm_100", "sm_120"]),
        ("emit {\n  regime ", ["block_decode", "full_sequence"]),
        ('extends "', ["base.qs"]),
        ("# layers ", []),
        ("layers head keep  # use ", []),
        ('recipe r {\n  model "', list(known_models())),
        ('recipe r {\n  model "a" revision "', []),
        ("calibrate {\n  samples 3 # ma", []),
    ],
)
def test_names(text: str, expected: list[str]) -> None:
    assert sorted(words(text)) == sorted(expected)


def test_what_is_said_of_them() -> None:
    assert found("layers head use w")[0] == Completion("w4", "", "scheme", "weights int4 per group 128 asymmetric")
    assert Completion("$alpha", "", "param", "param alpha = 0.5 in 0..1") in found("apply smooth(alpha = $")
    (alpha,) = found("apply smooth(")
    assert (alpha.kind, alpha.detail) == ("setting", "0 … 1, search; default 0.5")
    assert alpha.doc == settings(passes.available()["smooth"])["alpha"].doc
    formats = {one.word: one.doc for one in found("scheme s {\n  weights ")}
    assert formats["int4"] == "4-bit integer, codes -8 … 7"
    assert formats["nvfp4"] == "4-bit float, -6 … 6, a scale of 8 bits for each 16"
    samples = next(one for one in found("calibrate {\n  ") if one.word == "samples")
    assert samples.detail == "1 … 65536; default 128"


def test_the_word_that_is_begun() -> None:
    for text, begun in (("layers bl", "bl"), ("smooth(alpha = $al", "$al"), ("layers ", ""), ("blocks[*].", "")):
        match = BEGUN.search(text)
        assert match is not None
        assert match[0] == begun


@pytest.mark.parametrize("after", ["", "\nscheme {{{ \nlayers ??? \n", '\n"\n)\n'])
def test_broken_text_elsewhere_does_not_matter(after: str) -> None:
    source = Source("r.qs", "apply ( \n" + RECIPE + "layers blocks[*].mlp." + after)
    at = source.text.index("mlp.") + 4
    names = Names.of(merge(source), passes.available(), FAMILIES)
    assert [one.word for one in completions(source, at, names)] == [*PARTS, *MIXED, "*"]


WORD = re.compile(r'"[^"]*"|#.*|(?<![\w.])-?[0-9][\w.]*|(?P<word>\$?[A-Za-z_]\w*)')
NEW = ("recipe", "scheme", "param")  # what follows is a name of the author's


def test_every_word_of_a_recipe_is_offered_where_it_stands() -> None:
    checked = 0
    for name in ("llada_w4a4", "llada_mixed", "llada_search", "paper/duquant_w4a4"):
        path = ROOT / "recipes" / f"{name}.qs"
        source = Source(str(path), path.read_text())
        names = Names.of(merge(source), passes.available(), FAMILIES)
        for match in WORD.finditer(source.text):
            before = source.text[: match.start()].split()[-1:]
            if match["word"] and before not in [[word] for word in NEW]:
                offered = [one.word.partition("[")[0] for one in completions(source, match.start(), names)]
                assert match["word"] in offered, source.position(match.start())
                checked += 1
    assert checked > 200
