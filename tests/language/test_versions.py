"""Files of other versions of the language: what is said of them, and how an older one is upgraded.

There is one version so far: a second one is made up here, in which `keep` is spelled `leave`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import pytest

from qspec.cli import fix, main
from qspec.diagnostics import Edit, Source, Span
from qspec.language import versions
from qspec.language.versions import other_version, stated, upgraded
from tests.language.fakes import ROOT

OLD = "# é\nqspec 1  # first\n\nlayers head      keep\nlayers embedding keep\n"
NEW = "# é\nqspec 2  # first\n\nlayers head      leave\nlayers embedding leave\n"


NOTHING = "nothing to upgrade: version {} of the language is the newest that this qspec knows\n"


def to_leave(source: Source) -> Sequence[Edit]:
    return [Edit(Span(*m.span(), source.path), "leave") for m in re.finditer(r"\bkeep\b", source.text)]


@pytest.fixture
def second(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a qspec that knows two versions."""
    monkeypatch.setattr(versions, "VERSION", 2)
    monkeypatch.setattr(fix, "VERSION", 2)
    monkeypatch.setattr(versions, "UPGRADES", {1: to_leave})


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("qspec 1", 1),
        ("\n# qspec 7\n\n  qspec\t12 # x\nrecipe r {}", 12),
        ("qspec 1.5", None),
        ("qspec -1", None),
        ("qspec one", None),
        ("layers head keep\nqspec 2\n", None),
        ("qspecs 2", None),
        ("", None),
    ],
)
def test_the_version_that_is_stated(text: str, number: int | None) -> None:
    found = stated(Source("r.qs", text))
    assert (found[0] if found else None) == number
    if found:
        assert text[found[1].start : found[1].end] == str(number)


@pytest.mark.usefixtures("second")
def test_an_older_file_is_told_what_upgrades_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "r.qs"
    path.write_text(OLD)
    assert main(["check", str(path)]) == 1
    assert capsys.readouterr().out == (
        "error[QS008]: this file is written in version 1 of the language, and this qspec reads version 2\n"
        f" --> {path}:2:7\n"
        "  |\n"
        "2 | qspec 1  # first\n"
        "  |       ^\n"
        "  |\n"
        "  = next: upgrade it: qspec fix FILE\n"
        "\n"
        "1 error in 1 recipe\n"
    )
    assert main(["fmt", str(path)]) == 1
    assert path.read_text() == OLD


@pytest.mark.usefixtures("second")
def test_an_upgrade(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, other = tmp_path / "r.qs", tmp_path / "other.qs"
    path.write_bytes(OLD.replace("\n", "\r\n").encode())
    other.write_text(NEW)
    assert main(["fix", "--diff", str(tmp_path)]) == 0
    assert "-layers head      keep\n" in capsys.readouterr().out
    assert main(["fix", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"{path} is written in version 2 now\n"
    assert path.read_bytes() == NEW.replace("\n", "\r\n").encode()
    assert other.read_text() == NEW
    assert main(["fix", str(tmp_path)]) == 0
    assert capsys.readouterr().out == NOTHING.format(2)


def test_steps_follow_one_another(monkeypatch: pytest.MonkeyPatch) -> None:
    def at_the_end(source: Source) -> list[Edit]:
        return [Edit(Span(len(source.text), len(source.text), source.path), f"# was {stated(source)}"[:7])]

    monkeypatch.setattr(versions, "VERSION", 3)
    monkeypatch.setattr(versions, "UPGRADES", {1: to_leave, 2: at_the_end})
    assert upgraded(Source("r.qs", OLD)).text == NEW.replace("qspec 2", "qspec 3") + "# was ("


def test_there_is_one_version(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipes = [Source(str(path), path.read_text()) for path in (ROOT / "recipes").rglob("*.qs")]
    assert not any(other_version(source) for source in recipes)
    path = tmp_path / "r.qs"
    path.write_text(OLD)
    assert main(["fix", str(path)]) == 0
    assert capsys.readouterr().out == NOTHING.format(1)
    assert path.read_text() == OLD
    path.write_text(NEW)
    assert main(["fix", str(path)]) == 1
    assert "is written in version 2 of the language, and this qspec reads version 1" in capsys.readouterr().err
    assert main(["fix", "-"]) == 2
    assert path.read_text() == NEW
