"""Manifest, hashes and names: tampering is named, and so is what does not belong to an artifact."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

from qspec import artifact
from qspec.artifact import verify
from qspec.catalog import PACKING
from qspec.errors import InputError
from qspec.files import sha256
from qspec.manifest import FORMAT, CalibrationRecord, Manifest, ModelRecord
from qspec.version import __version__
from qspec.workspace import Workspace
from tests.end_to_end.hostile import seal

KEY = {"recipe": "1"}


def manifest(files: dict[str, str]) -> Manifest:
    return Manifest(
        format=FORMAT,
        packing=PACKING,
        qspec="0",
        name="r",
        recipe="",
        model=ModelRecord(id="m", revision="main", family="llada", standin=False, replacements=(), files={}),
        calibration=CalibrationRecord(
            tokens_sha256="0",
            text='"wikitext2"',
            samples=1,
            length=8,
            mask="uniform(0.0, 1.0)",
            draws=1,
            rows=1,
            weigh="masked 1.0, unmasked 1.0",
            seed=0,
            distinct=32,
            drawn=32,
        ),
        modules=(),
        kernels=(),
        bits_per_weight=4.0,
        bits_per_weight_model=5.0,
        bytes_before=2,
        bytes_after=1,
        files=files,
    ).sealed()


def publish(out: Path) -> Path:
    space = Workspace(out, KEY)
    space.write_shard("model-00001-of-00001.safetensors", {"a.weight": torch.arange(6.0)})
    space.write_index(["model-00001-of-00001.safetensors"])
    space.write("config.json", "{}")
    (space.folder / "report").mkdir()
    (space.folder / "report/report.md").write_text("# report")
    artifact.seal_report(space.folder)
    space.write("qspec.json", manifest(space.hashes()).text())
    return space.publish()


def test_published_artifact_verifies(tmp_path: Path) -> None:
    out = publish(tmp_path / "out")
    assert verify(out).name == "r"
    assert not (tmp_path / "out.partial").exists()
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert index == {"metadata": {"total_size": 24}, "weight_map": {"a.weight": "model-00001-of-00001.safetensors"}}


def test_a_flipped_byte_in_any_file_is_named(tmp_path: Path) -> None:
    out = publish(tmp_path / "out")
    names = [p for p in sorted(out.rglob("*")) if p.is_file()]
    assert len(names) == 6
    for path in names:
        whole = path.read_bytes()
        for place in (0, len(whole) // 2, len(whole) - 1):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
            with pytest.raises(InputError) as caught:
                verify(out)
            assert path.name in str(caught.value)
        path.write_bytes(whole)
    verify(out)


def test_missing_and_added_files_are_named(tmp_path: Path) -> None:
    out = publish(tmp_path / "out")
    (out / "extra.bin").write_text("x")
    with pytest.raises(InputError, match=r"does not belong[\s\S]*extra\.bin"):
        verify(out)
    (out / "extra.bin").unlink()
    (out / "config.json").unlink()
    with pytest.raises(InputError, match=r"missing[\s\S]*config\.json"):
        verify(out)


def test_weights_of_another_packing_are_refused(tmp_path: Path) -> None:
    seal(tmp_path, json.loads(manifest({}).text()) | {"packing": PACKING + 1})
    assert Manifest.read(tmp_path).name == "r"
    message = rf"packed in format {PACKING + 1}, and qspec {re.escape(__version__)} reads format {PACKING}"
    with pytest.raises(InputError, match=message):
        verify(tmp_path)


def test_a_manifest_of_another_format_is_refused(tmp_path: Path) -> None:
    older = json.loads(manifest({}).sealed().text()) | {"format": FORMAT - 1}
    (tmp_path / "qspec.json").write_text(json.dumps(older, indent=1) + "\n")
    with pytest.raises(InputError, match=rf"not a manifest of format {FORMAT}: Input should be {FORMAT}"):
        Manifest.read(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"format": 2}', "\x00\xff"])
def test_a_file_that_is_no_manifest(tmp_path: Path, text: str) -> None:
    (tmp_path / "qspec.json").write_text(text)
    with pytest.raises(InputError, match=rf"not a manifest of format {FORMAT}[\s\S]*qspec\.json"):
        verify(tmp_path)


def test_a_file_name_stays_inside_however_the_folder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = publish(tmp_path / "x")
    monkeypatch.chdir(out)
    for folder in (out, out / ".." / "x", Path(), Path("../x"), Path("../../") / tmp_path.name / "x"):
        assert verify(folder).name == "r"
        assert artifact.inside(folder, "report/report.md") == folder / "report/report.md"
        for name in ("../outside.safetensors", "report/../../x", "/etc/passwd", "..", ".", "", "a\0b"):
            with pytest.raises(InputError, match="leaves the artifact's folder"):
                artifact.inside(folder, name)
    (tmp_path / "outside.safetensors").write_text("theirs")
    files = {"../outside.safetensors": sha256(tmp_path / "outside.safetensors")}
    seal(out, json.loads(manifest({}).text()) | {"files": files})
    with pytest.raises(InputError, match="leaves the artifact's folder"):
        verify(Path())


def test_a_report_seals_nothing_but_the_report(tmp_path: Path) -> None:
    out = publish(tmp_path / "out")
    (out / "stray.bin").write_text("x")
    lines = f"{sha256(out / 'stray.bin')}  stray.bin\n"
    (out / artifact.REPORT_SEAL).write_text(f"{lines}{artifact._digest(lines)}  {artifact.REPORT_SEAL}\n")
    with pytest.raises(InputError, match="was changed after it was written"):
        verify(out)


def test_a_report_that_is_replaced_while_it_is_verified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its files go and others come between the reading of the seal and that of the files."""
    out = publish(tmp_path / "out")
    read = artifact._read_sums

    def replaced(path: Path) -> dict[str, str]:
        found = read(path)
        if (out / "report/report.md").read_text() == "# report":
            (out / "report/report.md").write_text("# another")
            artifact.seal_report(out)
        return found

    monkeypatch.setattr(artifact, "_read_sums", replaced)
    assert verify(out).name == "r"
