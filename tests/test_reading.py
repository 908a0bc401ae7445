"""Files that may be anybody's: a pipe or a device is not read, sizes are bounded and said."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from qspec import manifest
from qspec.cli import main
from qspec.data import files as data_files
from qspec.data.files import read_documents, read_rows
from qspec.errors import InputError
from qspec.files import open_input, read_input
from qspec.kernels import tuned
from qspec.manifest import Manifest
from qspec.models.config import read_config, read_json
from qspec.report.data import ReportData
from qspec.search.store import Store
from tests.language.fakes import recipe

READERS: dict[str, tuple[str, Callable[[Path], object]]] = {  # file -> its reader, of the folder
    "config": ("config.json", read_config),
    "manifest": ("qspec.json", Manifest.read),
    "report": ("report.json", lambda folder: ReportData.read(folder / "report.json")),
    "tuned": ("gpu.json", lambda folder: tuned.read(folder / "gpu.json")),
    "text": ("text.txt", lambda folder: read_documents(folder / "text.txt")),
    "rows": ("rows.jsonl", lambda folder: list(read_rows(folder / "rows.jsonl"))),
    "result": ("key.json", lambda folder: Store(folder).get("key")),
}


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_what_is_no_regular_file_is_refused_at_once(tmp_path: Path, name: str, kind: str) -> None:
    file, reader = READERS[name]
    if kind == "pipe":
        os.mkfifo(tmp_path / file)
    else:
        (tmp_path / file).symlink_to("/dev/zero")
    with pytest.raises(InputError) as caught:
        reader(tmp_path)
    assert file in str(caught.value)


def test_a_recipe_that_is_a_pipe_or_extends_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.mkfifo(tmp_path / "pipe.qs")
    (tmp_path / "r.qs").write_text(recipe().replace("qspec 1", 'qspec 1\nextends "pipe.qs"', 1))
    for command in (["check"], ["fmt", "--check"], ["plan"], ["show"]):
        assert main([*command, str(tmp_path / "pipe.qs")]) == 3
        assert "it is not a regular file" in capsys.readouterr().err
    assert main(["check", str(tmp_path / "r.qs")]) == 1
    assert "error[QS013]: `pipe.qs` cannot be read: it is not a regular file" in capsys.readouterr().out


def test_sizes_are_bounded(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(b'{"a":1}')
    assert read_input(path, 7) == b'{"a":1}'
    with pytest.raises(OSError, match="it has more than 6 bytes"):
        read_input(path, 6)
    with pytest.raises(InputError, match=r"config\.json cannot be read: it has more than 6 bytes"):
        read_json(path, 6)
    with pytest.raises(IsADirectoryError):
        open_input(tmp_path)


def test_a_large_manifest_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifest, "MAX_MANIFEST_BYTES", 10)
    (tmp_path / "qspec.json").write_text("{" + " " * 20 + "}")
    with pytest.raises(InputError, match="cannot be read: it has more than 10 bytes"):
        Manifest.read(tmp_path)


@pytest.mark.parametrize("name", ["text.txt", "rows.jsonl"])
def test_a_line_is_bounded(tmp_path: Path, name: str) -> None:
    """Tokenizers take seconds and hundreds of megabytes for each mebibyte of one document."""
    path = tmp_path / name
    field = "text" if name == "rows.jsonl" else None
    line = '{"text": "%s"}\n' if field else "%s\n"
    longest = (1 << 20) - len(line % "")
    path.write_text(line % "a" + line % ("b" * longest))
    assert len(read_documents(path, field)[-1]) >= longest
    path.write_text(line % "a" + line % ("b" * (longest + 1)) + line % "c")
    with pytest.raises(InputError, match=rf"more than 1048576 bytes[\s\S]*{name}:2\n"):
        read_documents(path, field)


def test_a_data_file_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_files, "MAX_BYTES", 10)
    (tmp_path / "text.txt").write_text("0123456789\n")
    with pytest.raises(InputError, match="the file cannot be read: it has more than 10 bytes"):
        read_documents(tmp_path / "text.txt")


@pytest.mark.parametrize("command", ["compile", "plan", "check", "inspect", "generate", "eval", "report", "kernels"])
def test_a_name_that_is_too_long(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    more = ["--prompt", "x"] if command == "generate" else []
    assert main([command, "n" * 300, *more]) == 3
    said = capsys.readouterr()
    assert "nnn" in said.err + said.out
