"""Manifest and workspace: tampering is named, an interrupted run goes on, nothing half-made is published."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from qspec import artifact
from qspec.artifact import FORMAT, CalibrationRecord, Manifest, ModelRecord, Workspace, verify
from qspec.errors import InputError


def manifest(files: dict[str, str]) -> Manifest:
    return Manifest(
        format=FORMAT,
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
    space = Workspace(out, "key")
    space.write_shard("model-00001-of-00001.safetensors", {"a.weight": torch.arange(6.0)}, {})
    space.write_index(["model-00001-of-00001.safetensors"])
    space.write("config.json", "{}")
    (space.folder / "report").mkdir()
    space.write("report/report.md", "# report")
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


def test_a_manifest_of_another_packing_is_refused(tmp_path: Path) -> None:
    older = json.loads(manifest({}).sealed().text()) | {"format": FORMAT - 1}
    (tmp_path / "qspec.json").write_text(json.dumps(older, indent=1) + "\n")
    with pytest.raises(InputError, match=rf"not a manifest of format {FORMAT}: Input should be {FORMAT}"):
        Manifest.read(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"format": 2}', "\x00\xff"])
def test_a_file_that_is_no_manifest(tmp_path: Path, text: str) -> None:
    (tmp_path / "qspec.json").write_text(text)
    with pytest.raises(InputError, match=rf"not a manifest of format {FORMAT}[\s\S]*qspec\.json"):
        verify(tmp_path)


def test_an_interrupted_run_goes_on(tmp_path: Path) -> None:
    first = Workspace(tmp_path / "out", "key")
    first.write_shard("s1", {"a": torch.ones(2)}, {"note": 7})
    first.close()
    again = Workspace(tmp_path / "out", "key")
    record = again.finished("s1")
    assert record is not None
    assert record["note"] == 7
    assert again.finished("s2") is None
    again.close()


def test_what_a_killed_writer_left_is_removed(tmp_path: Path) -> None:
    first = Workspace(tmp_path / "out", "key")
    first.write_shard("s1", {"a": torch.ones(2)}, {})
    first.write("kernels/one.py", "1")
    first.close()
    for left in (".progress.json.17.tmp", "kernels/.one.py.17.tmp"):
        (first.folder / left).write_text("half")
    again = Workspace(tmp_path / "out", "key")
    assert sorted(path.name for path in again.folder.rglob("*.tmp")) == []
    assert (again.folder / "kernels" / "one.py").read_text() == "1"
    again.close()


def test_a_torn_shard_is_made_again(tmp_path: Path) -> None:
    first = Workspace(tmp_path / "out", "key")
    first.write_shard("s1", {"a": torch.ones(2)}, {})
    first.close()
    shard = tmp_path / "out.partial" / "s1"
    shard.write_bytes(shard.read_bytes()[:-1])
    again = Workspace(tmp_path / "out", "key")
    assert again.finished("s1") is None
    again.close()


@pytest.mark.parametrize("progress", [None, "{", "[]", '{"key": "other", "shards": {"s1": {}}}'])
def test_other_inputs_or_a_torn_record_start_over(tmp_path: Path, progress: str | None) -> None:
    first = Workspace(tmp_path / "out", "key")
    first.write_shard("s1", {"a": torch.ones(2)}, {})
    first.close()
    if progress is not None:
        (tmp_path / "out.partial" / ".progress.json").write_text(progress)
    again = Workspace(tmp_path / "out", "another key" if progress is None else "key")
    assert again.finished("s1") is None
    assert not (tmp_path / "out.partial" / "s1").exists()
    again.close()


def test_publishing_replaces_an_older_artifact(tmp_path: Path) -> None:
    publish(tmp_path / "out")
    (tmp_path / "out" / "leftover").write_text("x")
    publish(tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out"]
    verify(tmp_path / "out")


def test_other_peoples_folders_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("precious")
    with pytest.raises(InputError, match="holds something that is not a qspec artifact"):
        Workspace(tmp_path / "out", "key")
    assert (tmp_path / "out" / "thesis.tex").read_text() == "precious"


def test_two_compiles_do_not_share_a_workspace(tmp_path: Path) -> None:
    first = Workspace(tmp_path / "out", "key")
    with pytest.raises(InputError, match="another compile is writing here"):
        Workspace(tmp_path / "out", "key")
    first.close()
