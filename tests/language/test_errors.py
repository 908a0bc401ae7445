"""Whole rendered diagnostics against goldens: tests/errors/NAME.qs and NAME.txt.

A golden that is missing fails. QSPEC_UPDATE_GOLDENS=1 writes them; read the difference before you commit it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

import pytest

from qspec.diagnostics import Diagnostic, RecipeError, Source, Span, apply_edits, render_text, summary
from qspec.language import load_recipe, load_source, understand
from qspec.language.explanations import explanations
from qspec.language.fixes import Fixed, fix
from qspec.language.parser import read
from qspec.lock import lock_problems
from qspec.models.registry import FAMILIES
from tests.language.fakes import APPLY, HEAD, PASSES, ROOT, RULES, SCHEME, codes

FOLDER = ROOT / "tests" / "errors"
NOT_IN_TEXT = ("QS001", "QS071")  # of bytes, and of another file
RECIPES = sorted(FOLDER.glob("*.qs"))


def checked(name: str) -> tuple[tuple[Diagnostic, ...], Mapping[str, Source]]:
    """Diagnostics of a recipe in the current folder, and the texts they point into."""
    try:
        loaded = load_recipe(name, PASSES, {}, FAMILIES)
    except RecipeError as error:
        return error.diagnostics, error.sources
    if not Path(name).with_suffix(".lock").exists():
        return loaded.warnings, loaded.sources
    head = re.search(r"^recipe \w+", loaded.sources[name].text, re.MULTILINE)
    assert head is not None
    return (*loaded.warnings, *lock_problems(loaded.spec, Span(*head.span(), name))), loaded.sources


def checked_text(text: str, path: str) -> tuple[Diagnostic, ...]:
    """The same for a text that stands for the file at `path`."""
    try:
        return load_source(Source(path, text), PASSES, {}, FAMILIES).warnings
    except RecipeError as error:
        return error.diagnostics


def rendered(name: str) -> str:
    """What `qspec check NAME` prints in that folder."""
    found, sources = checked(name)
    return f"{render_text(found, sources)}\n\n{summary(found)}\n"


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_golden(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(FOLDER)
    text = rendered(path.name)
    golden = path.with_suffix(".txt")
    if os.environ.get("QSPEC_UPDATE_GOLDENS") == "1":
        golden.write_text(text, encoding="utf-8")
    assert golden.is_file(), f"no golden {golden.name}; the diagnostics are\n{text}"
    assert text == golden.read_text(encoding="utf-8")


def test_there_are_many_and_none_is_left_over() -> None:
    assert len(RECIPES) >= 60
    assert {p.stem for p in FOLDER.glob("*.txt")} == {p.stem for p in RECIPES}
    goldens = [p.read_text(encoding="utf-8") for p in FOLDER.glob("*.txt")]
    assert len(set(goldens)) == len(goldens)


def test_every_code_has_an_explanation_and_a_golden() -> None:
    shown = set()
    for golden in FOLDER.glob("*.txt"):
        shown |= set(re.findall(r"^(?:error|warning)\[(QS\d{3})\]", golden.read_text(encoding="utf-8"), re.MULTILINE))
    used = set()
    for source in (ROOT / "qspec").rglob("*.py"):
        used |= set(re.findall(r'"(QS\d{3})"', source.read_text(encoding="utf-8")))
    assert used == set(explanations())
    assert used <= shown


def completed(fragment: str) -> str:
    """An example with the parts added that it is not about."""
    if "qspec 1" in fragment and "recipe" in fragment:
        return fragment + "\n"
    parts = ["" if fragment.startswith("qspec") else "qspec 1\n", fragment + "\n"]
    for word, text in (
        ("recipe", HEAD.removeprefix("qspec 1\n")), ("scheme", SCHEME), ("layers", RULES), ("apply", APPLY),
    ):  # fmt: skip
        if not re.search(rf"^{word}\b", fragment, re.MULTILINE):
            parts.append(text)
    return "\n".join(parts)


@pytest.mark.parametrize("code", [code for code in explanations() if code not in NOT_IN_TEXT])
def test_examples_of_explanations(code: str) -> None:
    explanation = explanations()[code]
    assert code in codes(completed(explanation.bad))
    assert codes(completed(explanation.good)) == []


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_suggested_edits_help(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Applying a suggestion removes its diagnostic and brings no error of syntax."""
    monkeypatch.chdir(FOLDER)
    found, sources = checked(path.name)
    for problem in found:
        if problem.edits:
            text = apply_edits(sources[problem.span.path].text, problem.edits)
            after = {(d.code, d.message) for d in checked_text(text, problem.span.path)}
            before = {(d.code, d.message) for d in found}
            assert (problem.code, problem.message) not in after
            assert not any(code < "QS010" for code, _ in after - before)


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_fixed_recipes_have_nothing_left_to_fix(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `check --fix` makes; nothing that was fixed is still said, and fixing it again changes nothing."""
    monkeypatch.chdir(FOLDER)

    def find(source: Source) -> tuple[Diagnostic, ...]:
        return understand(source, PASSES, {}, FAMILIES).problems

    source, problems = read(path.name)
    if problems:
        return
    fixable = [one for one in find(source) if one.edits and one.edits[0].span.path == path.name]
    fixed = fix(source, find)
    assert bool(fixable) == bool(fixed.fixes) == (fixed.source.text != source.text)
    left = find(fixed.source)
    assert not {(one.code, one.message) for one in (*fixable, *fixed.fixes)} & {(one.code, one.message) for one in left}
    assert not [one for one in left if one.edits and one.edits[0].span.path == path.name]
    assert fix(fixed.source, find) == Fixed(fixed.source, ())


def test_no_golden_leaks_a_path_or_control_character() -> None:
    for golden in FOLDER.glob("*.txt"):
        text = golden.read_text(encoding="utf-8")
        assert str(ROOT) not in text
        assert all(c.isprintable() or c == "\n" for c in text), golden.name
