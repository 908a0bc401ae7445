"""Where a search writes to: looked at before the work; only what a search wrote is replaced."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qspec.errors import InputError
from qspec.search.places import FOUND, require_places
from tests.test_artifact import publish


def test_only_what_a_search_wrote_is_replaced(tmp_path: Path) -> None:
    recipe, evidence = tmp_path / "r.qs", tmp_path / "r.json"
    require_places([recipe], tmp_path / "build")
    recipe.write_text(f"qspec 1\n# {FOUND} base: 4 of 4 bits.\n")
    evidence.write_text(json.dumps({"recipe": "base", "layout": {}, "trials": [], "more": 1}))
    require_places([recipe], tmp_path / "build")
    for file, text in (
        (recipe, "qspec 1\n\nrecipe mine {\n}\n"),
        (evidence, '{"precious": 1}'),
        (evidence, "[" * 9999),
    ):
        before = file.read_text()
        file.write_text(text)
        with pytest.raises(InputError, match=rf"would replace a file that no search wrote[\s\S]*{file.name}"):
            require_places([recipe], tmp_path / "build")
        assert file.read_text() == text
        file.write_text(before)


def test_places_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")
    (tmp_path / "r.qs").mkdir()
    out = publish(tmp_path / "m")
    for path, folder, message in (
        (tmp_path / "file/r.qs", tmp_path, "cannot write here: Not a directory"),
        (tmp_path / "r.qs", tmp_path, "cannot write here: there is something that is no file"),
        (out / "r.qs", tmp_path, "inside an artifact"),
        (tmp_path / "a.qs", tmp_path / "file", "cannot write here: Not a directory"),
    ):
        with pytest.raises(InputError, match=message):
            require_places([path], folder)
