"""Whole rendered diagnostics against goldens: tests/errors/NAME.qs and NAME.txt.

A golden that is missing fails. QSPEC_UPDATE_GOLDENS=1 writes them; read the difference before you commit it.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from tests.language.fakes import PASSES, ROOT

from qspec.diagnostics import RecipeError, render_text, summary
from qspec.language import load_recipe
from qspec.language.explanations import explanations
from qspec.models.registry import FAMILIES

FOLDER = ROOT / "tests" / "errors"
RECIPES = sorted(FOLDER.glob("*.qs"))


def rendered(name: str) -> str:
    """What `qspec check NAME` prints in that folder."""
    try:
        loaded = load_recipe(name, PASSES, {}, FAMILIES)
        found, sources = loaded.warnings, loaded.sources
    except RecipeError as error:
        found, sources = error.diagnostics, error.sources
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
    assert used - _NEEDS_MORE_THAN_A_FILE <= shown


_NEEDS_MORE_THAN_A_FILE: set[str] = set()
