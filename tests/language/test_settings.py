"""A new setting is a word of the grammar and a field of its block's class: everything else follows from these two."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import TypeAdapter

from qspec import passes, resources
from qspec.cli import main
from qspec.diagnostics import RecipeError, Source
from qspec.language import completion, grammar, mistakes, reference, resolve
from qspec.language.completion import Names, completions
from qspec.language.fields import about, between, settings
from qspec.language.pieces import BLOCK_KINDS
from qspec.language.reference import filled, table
from qspec.language.spec import BLOCK_CLASSES, Calibration, Emit, Rollouts, TaskRequest
from tests.language.fakes import PASSES, ROOT, codes, load, recipe

PAGE = ROOT / "grammar" / "reference.md"


@dataclass(frozen=True)
class Strided(Calibration):
    """What the second file says."""

    stride: Annotated[int, between(1, 64, "tokens between windows")] = 1
    pad: Annotated[Literal["left", "right"], about("where short windows are filled")] = "right"


@pytest.fixture
def strided(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    text = (resources.grammar() / "qspec.lark").read_text(encoding="utf-8")
    rule = 'calibrate_setting: ("samples" | "length" | "draws" | "seed") number -> setting'
    assert rule in text
    more = rule.replace('| "seed"', '| "seed" | "stride"') + '\n                 | "pad" NAME -> setting'
    (tmp_path / "qspec.lark").write_text(text.replace(rule, more), encoding="utf-8")
    caches = (grammar.lark_parser, grammar.literals, grammar._parsed)
    for one in caches:
        one.cache_clear()
    monkeypatch.setattr(resources, "grammar", lambda: tmp_path)
    monkeypatch.setattr(resolve, "Calibration", Strided)
    for module in (completion, mistakes, reference):
        monkeypatch.setattr(module, "BLOCK_CLASSES", {**BLOCK_CLASSES, "calibrate": Strided})
    yield
    for one in caches:
        one.cache_clear()


def calibrate(settings: str) -> str:
    return recipe(f"\ncalibrate {{\n  {settings}\n}}\n")


def message(settings: str) -> tuple[str, str]:
    with pytest.raises(RecipeError) as caught:
        load(calibrate(settings))
    (problem,) = caught.value.diagnostics
    return problem.message, problem.hint


@pytest.mark.usefixtures("strided")
def test_reading_printing_and_messages_follow() -> None:
    spec = load(calibrate("samples 3 stride 4 pad left")).spec
    assert spec.calibrate == Strided(samples=3, stride=4, pad="left")
    assert "\n  stride  4\n  pad     left\n}\n" in spec.text
    assert load(spec.text).spec == spec
    assert load(recipe()).spec.calibrate == Strided()
    assert message("stride 65") == (
        "`stride` of `calibrate`: `65` is out of range; it must be at most 64",
        "write a value at most 64",
    )
    assert message("pad lefd") == ("`pad` of `calibrate`: `lefd` is not `left` or `right`", "did you mean `left`?")
    assert message("strid 3") == ("`strid` is not a setting of `calibrate`", "did you mean `stride`?")
    assert message("stride no")[1] == "the form is: stride NUMBER"


@pytest.mark.usefixtures("strided")
def test_schema_completion_and_reference_follow() -> None:
    assert TypeAdapter(Strided).json_schema()["properties"]["stride"] == {
        "default": 1, "description": "tokens between windows", "maximum": 64, "minimum": 1, "title": "Stride",
        "type": "integer",
    }  # fmt: skip
    assert ("stride", "tokens between windows") in complete("calibrate {\n  samples 3 st")
    assert complete("calibrate {\n  pad ") == [("left", ""), ("right", "")]
    page = filled("a\n<!-- settings of calibrate -->\n<!-- end -->\nb\n", {})
    assert page.endswith(
        "\n| `stride` | tokens between windows: 1 … 64 | `1` |\n"
        "| `pad` | where short windows are filled: `left`, `right` | `right` |\n<!-- end -->\nb\n"
    )


def complete(text: str, after: str = "") -> list[tuple[str, str]]:
    return [(one.word, one.doc) for one in completions(Source("r.qs", text + after), len(text), Names(PASSES))]


def test_the_page_has_the_settings_as_they_are() -> None:
    page = PAGE.read_text(encoding="utf-8")
    if os.environ.get("QSPEC_UPDATE_GOLDENS") == "1":
        page = filled(page, passes.available())
        PAGE.write_text(page, encoding="utf-8")
    assert page.count("<!-- settings of ") == 6
    assert page.count("<!-- end -->") == 12
    assert filled(page, passes.available()) == page


def test_bounds_hold_for_what_may_be_left_out() -> None:
    assert load(recipe("\nevaluate {\n  task mmlu { limit 1 }\n}\n")).spec.evaluate.tasks == (
        TaskRequest("mmlu", 5, limit=1),
    )
    assert codes(recipe("\nevaluate {\n  task mmlu { limit 0 }\n}\n")) == ["QS017"]


def test_tables() -> None:
    assert table(TaskRequest).split("\n")[-2] == "| `limit` | items, every one by default: 1 or more |  |"
    assert table(Emit).split("\n")[-1] == (
        "| `regime` | tokens that a forward pass carries: `block_decode`, `full_sequence` | `full_sequence` |"
    )


STATEMENTS = ["qspec", "extends", "param", "layers", "apply", *BLOCK_KINDS]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", STATEMENTS),
        ("qspec 1\n\nlay", STATEMENTS),
        ("calibrate {\n}\n", STATEMENTS),
        ("calibrate {\n  mask ", ["fixed", "grid", "none", "prefix", "uniform"]),
        ("calibrate {\n  samples 3\n  ma", ["draws", "length", "mask", "samples", "seed", "text", "weigh"]),
        ("scheme s {\n  weights int4 per ", ["block", "channel", "group", "tensor", "token"]),
        ("search {\n  probe ", ["forward", "noise", "fisher"]),
        ("evaluate {\n  task gsm8k { sh", ["block", "chat", "length", "limit", "shots", "steps"]),
        ("layers head ", ["keep", "use"]),
        ("apply ", list(PASSES)),
        ("apply gptq(", ["damp", "order", "block"]),
        ("apply gptq(damp = 0.1, ", ["order", "block"]),
        ("apply nothing(", []),
        ("layers ? ", []),
    ],
)
def test_completion(text: str, words: list[str]) -> None:
    assert [word for word, _ in complete(text)] == words
    assert [word for word, _ in complete(text, "\nlayers head keep\n")] == words


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "r.qs"
    path.write_text("calibrate {\n  sa\n}\n")
    assert main(["complete", str(path), "2:4"]) == 0
    assert "samples  windows of the text\n" in capsys.readouterr().out
    assert main(["complete", "--json", str(path), "1:1"]) == 0
    assert capsys.readouterr().out.startswith(
        '[{"word": "qspec", "doc": "the version of the language; first in every file", "kind": "keyword", "detail": ""}'
    )
    for place in ("2", "0:1", "a:b"):
        assert main(["complete", str(path), place]) == 2


def test_every_setting_says_what_it_is_for() -> None:
    for name, cls in {**BLOCK_CLASSES, **passes.available(), "rollouts": Rollouts}.items():
        assert [key for key, one in settings(cls).items() if not one.doc] == [], name
