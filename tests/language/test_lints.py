"""Lints: what a removed rule leaves as it was, and what a comment allows. Whole texts are goldens in tests/errors."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from qspec.diagnostics import Source
from qspec.language import load_source, understand
from qspec.language.fixes import fix
from qspec.language.layout import lay_out
from qspec.language.selectors import ModuleTable
from qspec.models.llada import LLADA
from qspec.models.registry import FAMILIES
from tests.language.fakes import PASSES, codes, recipe

BLOCKS = 6
SCHEMES = "".join(
    f"\nscheme {name} {{\n  weights     int{bits} per channel symmetric\n  activations int8 per token symmetric\n}}\n"
    for name, bits in (("a", 8), ("b", 4))
)
FIRST = ("blocks[*]", "blocks[0]", "blocks[-1]", "blocks[1..3]", "blocks[2, 4]")
REST = ("*", "mlp.*", "attention.{q,k}", "mlp.down", "attention.o")


def decided(text: str) -> list[str | None]:
    """The scheme of every module of a model with `BLOCKS` blocks."""
    spec = load_source(Source("r.qs", text), PASSES, {}, FAMILIES).spec
    layout = lay_out(spec.rules, ModuleTable(list(LLADA.outline(range(BLOCKS))), BLOCKS))
    return [rule.scheme.name if rule and rule.scheme else None for rule in layout.decided]


def test_rules_without_effect_can_be_removed_together() -> None:
    """And those that are left all do something: without any one of them the model would be another."""
    draw = random.Random(19)
    removed = 0
    for _ in range(60):
        rules = [
            f"layers {draw.choice(FIRST)}.{draw.choice(REST)} {draw.choice(('use a', 'use b', 'keep'))}"
            for _ in range(draw.randint(2, 7))
        ]
        text = recipe(scheme=SCHEMES, rules="\n" + "\n".join(["layers blocks[*].* use a", *rules]) + "\n")
        fixed = fix(Source("r.qs", text), lambda s: [d for d in understand(s, PASSES, {}, FAMILIES).problems
                                                     if d.code == "QS038"])  # fmt: skip
        removed += len(fixed.fixes)
        assert decided(fixed.source.text) == decided(text)
        assert fixed.source.text.count("\nlayers ") == text.count("\nlayers ") - len(fixed.fixes)
    assert removed > 30


MASKS = "\ncalibrate {\n%s  mask none%s\n}\n"


@pytest.mark.parametrize(
    ("above", "behind", "allowed"),
    [
        ("", "", False),
        ("", "  # allow QS061: to compare", True),
        ("  # allow QS061: to compare\n", "", True),
        ("  # allow QS061 : to compare\n  # with the paper\n\n", "", True),
        ("", "  # as the paper does; allow QS061: to compare", False),
        ("", "  # allow QS034, QS061: to compare", True),
        ("", "  # allow QS061:", False),  # no reason
        ("", "  # allow QS061", False),
        ("", "  # allow QS034: to compare", False),
        ("  # allow QS061: to compare\n  samples 4\n", "", False),  # of another setting
    ],
)
def test_a_comment_allows_a_warning_at_its_statement(above: str, behind: str, allowed: bool) -> None:
    found = [code for code in codes(recipe(MASKS % (above, behind))) if code != "QS072"]
    assert found == ([] if allowed else ["QS061"])


@pytest.mark.parametrize(
    ("masks", "behind", "unused"),
    [
        ("none", "  # allow QS061: to compare", []),
        ("none", "  # allow QS034, QS061: to compare", ["QS034"]),
        ("uniform(0.0, 1.0)", "  # allow QS061: to compare", ["QS061"]),
        ("uniform(0.0, 1.0)", "\n}\n# allow QS070: behind all\nemit {\n  regime full_sequence", ["QS070"]),
        ("uniform(0.0, 1.0)", "  # allow QS061", []),  # without a reason it is only a comment
    ],
)
def test_a_comment_that_allows_nothing_is_a_warning(masks: str, behind: str, unused: list[str]) -> None:
    text = recipe(f"\ncalibrate {{\n  mask {masks}{behind}\n}}\n")
    found = understand(Source("r.qs", text), PASSES, {}, FAMILIES).problems
    assert [problem.message for problem in found] == [f"there is no {code} to allow here" for code in unused]
    assert [text[problem.span.start : problem.span.end] for problem in found] == unused


def test_what_only_a_model_shows_may_be_allowed() -> None:
    """Rules on single blocks are judged for certain on a model: whether its comment is needed, too."""
    for where, unused in (("blocks[*].mlp.down", ["QS072"]), ("blocks[3].mlp.down", [])):
        rules = f"\nlayers blocks[*].* use w8a8\nlayers {where} keep  # allow QS034: another model has it\n"
        assert [code for code in codes(recipe(rules=rules)) if code == "QS072"] == unused


def test_an_allowance_in_a_base_is_for_all_that_extend_it(tmp_path: Path) -> None:
    base = recipe("\ncalibrate {\n  mask uniform(0.0, 1.0)  # allow QS061: when it is none\n}\n")
    (tmp_path / "base.qs").write_text(base)
    text = 'qspec 1\n\nextends "base.qs"\n\nrecipe mine {\n}\n'
    (tmp_path / "mine.qs").write_text(text)
    assert not understand(Source(str(tmp_path / "mine.qs"), text), PASSES, {}, FAMILIES).problems


def test_no_comment_allows_an_error() -> None:
    text = recipe(apply="\napply rnt() on blocks[*].*  # allow QS023: it is there\n")
    assert codes(text) == ["QS023"]


@pytest.mark.parametrize(
    ("activations", "passes", "warns"),
    [
        ("int4 per token symmetric", "", True),
        ("int4 per token symmetric", "apply smooth() on blocks[*].*\n", True),
        ("int4 per token symmetric", "apply rotate_duquant() on blocks[*].attention.*\n", True),
        ("int4 per token symmetric", "apply rotate_duquant() on blocks[*].mlp.*\n", False),
        ("int8 per token symmetric", "", False),
        ("nvfp4", "", False),  # groups of 16
    ],
)
def test_what_handles_massive_outliers(activations: str, passes: str, warns: bool) -> None:
    weights = "nvfp4 per group 16 symmetric" if activations == "nvfp4" else "int4 per channel symmetric"
    activations = weights if activations == "nvfp4" else activations
    scheme = f"\nscheme w {{\n  weights     {weights}\n  activations {activations}\n}}\n"
    apply = f"\n{passes}apply rtn() on blocks[*].*\n"
    found = codes(recipe(scheme=scheme, rules="\nlayers blocks[*].* use w\n", apply=apply))
    assert found == (["QS045"] if warns else [])
