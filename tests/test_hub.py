"""Texts of the hub, from its cache and from copies, without the network; files of rows by path."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import constants
from huggingface_hub.errors import LocalEntryNotFoundError

from qspec.cli import main
from qspec.data import DataSources, read_documents
from qspec.data.hub import REVISIONS
from qspec.errors import InputError, MachineError
from qspec.language.spec import Calibration, Evaluation, FileText, NamedText, NelboRequest
from tests.hub_data import cached, texts, write

WIKITEXT, C4, PILE = "Salesforce/wikitext", "allenai/c4", "mit-han-lab/pile-val-backup"
TRAIN = "wikitext-2-raw-v1/train-00000-of-00001.parquet"
TEST = "wikitext-2-raw-v1/test-00000-of-00001.parquet"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty hub cache; the network is out of reach."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.delenv("QSPEC_DATA", raising=False)
    return tmp_path / "hub"


def sources(folder: Path, data: Path | None = None) -> DataSources:
    return DataSources(None, folder, {"QSPEC_DATA": str(data)} if data else {})


def test_wikitext_is_the_raw_text_joined_as_the_papers_do(cache: Path, tmp_path: Path) -> None:
    cached(cache, WIKITEXT, {TRAIN: texts("", " = Title = \n", " A line . \n"), TEST: texts(" Held out . \n")})
    found = sources(tmp_path)
    text = found.calibration(NamedText("wikitext2"))
    assert text.documents == ("\n\n = Title = \n\n\n A line . \n",)
    assert (text.title, text.revision, text.source) == ("WikiText-2 raw, train", REVISIONS[WIKITEXT], "")
    assert found.heldout(NamedText("wikitext2")).documents == (" Held out . \n",)
    assert found.replacements == []


def test_c4_is_the_beginning_of_its_first_file(cache: Path, tmp_path: Path) -> None:
    train = texts(*(f"document {i}" for i in range(4100)))
    held = texts("held out", "  ", "more")
    files = {"en/c4-train.00000-of-01024.json.gz": train, "en/c4-validation.00000-of-00008.json.gz": held}
    cached(cache, C4, files)
    found = sources(tmp_path)
    assert found.calibration(NamedText("c4")).documents == tuple(f"document {i}" for i in range(4096))
    assert found.heldout(NamedText("c4")).documents == ("held out", "more")


def test_the_piles_validation_text_is_split(cache: Path, tmp_path: Path) -> None:
    cached(cache, PILE, {"val.jsonl.zst": texts(*(f"document {i}" for i in range(3000)))})
    found = sources(tmp_path)
    calibration, held = (read(NamedText("pile")).documents for read in (found.calibration, found.heldout))
    assert (calibration[-1], held[0], held[-1]) == ("document 2047", "document 2048", "document 2559")


def test_a_folder_of_copies_comes_before_the_cache(cache: Path, tmp_path: Path) -> None:
    cached(cache, WIKITEXT, {TRAIN: texts("cached")})
    path = write(tmp_path / "copies" / WIKITEXT / "wikitext-2-raw-v1/train.jsonl", texts("a copy"))
    found = sources(tmp_path, tmp_path / "copies")
    text = found.calibration(NamedText("wikitext2"))
    assert (text.documents, text.revision, text.files) == (("a copy",), "local copy", (path,))
    pins = found.check(Calibration(), Evaluation())
    assert [(pin.use, pin.name, pin.revision) for pin in pins] == [("calibration", "wikitext2", "local copy")]
    assert pins[0].sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    with pytest.raises(InputError, match="QSPEC_DATA does not name a folder"):
        sources(tmp_path, tmp_path / "no").calibration(NamedText("wikitext2"))


def test_one_error_names_all_that_is_missing(cache: Path, tmp_path: Path) -> None:
    cached(cache, WIKITEXT, {TEST: texts("held out")})  # train is not there
    wanted = Evaluation((NelboRequest(), NelboRequest(NamedText("c4")), NelboRequest(FileText("gone.txt"))))
    with pytest.raises(InputError) as caught:
        sources(tmp_path).check(Calibration(), wanted)
    assert caught.value.what.splitlines() == [
        "data that are not on this machine:",
        '  text "wikitext2": Salesforce/wikitext at b08601e04326 (wikitext-2-raw-v1/train*)',
        '  text "c4": allenai/c4 at 1588ec454efa (en/c4-validation.00000*)',
        f'  text file("gone.txt"): {tmp_path / "gone.txt"}',
    ]
    assert caught.value.hint is not None
    assert "--download" in caught.value.hint


def test_nothing_is_fetched_unless_asked(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def snapshot(id: str, *, revision: str, local_files_only: bool, **options: object) -> str:
        calls.append((id, revision, options["repo_type"], options["allow_patterns"], local_files_only))
        if local_files_only:
            raise LocalEntryNotFoundError("not cached")
        return str(cached(cache, WIKITEXT, {TRAIN: texts("fetched")}))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    with pytest.raises(InputError, match="not on this machine"):
        sources(tmp_path).calibration(NamedText("wikitext2"))
    wanted = (WIKITEXT, REVISIONS[WIKITEXT], "dataset", ["wikitext-2-raw-v1/train*"])
    assert calls == [(*wanted, True)]
    found = DataSources(None, tmp_path, {}, download=True)
    assert found.calibration(NamedText("wikitext2")).documents == ("fetched",)
    assert calls[-1] == (*wanted, False)


@pytest.mark.usefixtures("cache")
def test_a_failed_download_is_the_machines_error(tmp_path: Path) -> None:
    with pytest.raises(MachineError, match="Salesforce/wikitext could not be downloaded"):
        DataSources(None, tmp_path, {}, download=True).calibration(NamedText("wikitext2"))


def test_the_command_lists_what_is_here_and_how_to_get_the_rest(
    cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cached(cache, WIKITEXT, {TRAIN: texts("train")})
    recipe = tmp_path / "r.qs"
    recipe.write_text(
        'qspec 1\nrecipe r {\n family llada\n model "x/y"\n}\nscheme w { weights int8 per channel symmetric }\n'
        'layers blocks[*].* use w\napply rtn on blocks[*].*\nevaluate {\n nelbo on "wikitext2"\n}\n'
    )
    assert main(["data", str(recipe)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:2] == ["here", "calibration"]
    assert lines[2].split()[:2] == ["missing", "nelbo"]
    revision = REVISIONS[WIKITEXT]
    assert lines[3].strip() == (
        f"hf download {WIKITEXT} --repo-type dataset --revision {revision} --include 'wikitext-2-raw-v1/test*'"
    )
    assert main(["data", str(recipe), "--json"]) == 0
    here, missing = json.loads(capsys.readouterr().out)
    assert (here["revision"], missing["files"]) == (revision, None)
    assert Path(here["files"][0]).name == Path(TRAIN).name


@pytest.mark.parametrize("name", ["x.parquet", "x.jsonl.gz", "x.jsonl.zst", "x.jsonl", "x.json"])
def test_files_of_rows(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, [{"body": "first"}, {"body": " "}, {"body": "second"}])
    assert read_documents(path, "body") == ("first", "second")
    with pytest.raises(InputError) as caught:
        read_documents(path, "text")
    assert (caught.value.what, caught.value.where) == ('no field "text"', f"{path}:1")


def test_a_json_list(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text('\n[{"text": "first"},\n {"text": "second"}]')
    assert read_documents(path, "text") == ("first", "second")
    path.write_text('[{"text": "first"}, 3]')
    with pytest.raises(InputError, match="a row of the list must be a JSON object"):
        read_documents(path, "text")


def test_a_parquet_file_needs_a_field_and_must_be_one(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no field of them is named"):
        read_documents(write(tmp_path / "x.parquet", texts("a")))
    (tmp_path / "y.parquet").write_text("no")
    with pytest.raises(InputError, match="the file cannot be read") as caught:
        read_documents(tmp_path / "y.parquet", "text")
    assert caught.value.where == str(tmp_path / "y.parquet")


def test_damaged_packed_files(tmp_path: Path) -> None:
    whole = write(tmp_path / "x.jsonl.gz", texts("a" * 1000)).read_bytes()
    for name, content in (("no.jsonl.gz", b"no"), ("no.jsonl.zst", b"no"), ("cut.jsonl.gz", whole[:-12])):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match="the file cannot be read") as caught:
            read_documents(tmp_path / name, "text")
        assert caught.value.where == str(tmp_path / name)


def test_without_the_extra_plain_files_work_and_the_error_names_it(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached(cache, WIKITEXT, {TRAIN: texts("train")})
    write(tmp_path / "x.jsonl", texts("plain"))
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    assert sources(tmp_path).calibration(FileText("x.jsonl", "text")).documents == ("plain",)
    with pytest.raises(InputError) as caught:
        sources(tmp_path).calibration(NamedText("wikitext2"))
    assert caught.value.what == f"reading {Path(TRAIN).name} needs the package pyarrow, which is not installed"
    assert caught.value.hint == "install it: pip install 'qspec[eval]'"
