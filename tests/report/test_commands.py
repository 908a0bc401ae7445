"""`qspec report` and `qspec eval`, with the measuring itself replaced."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

import qspec.report
from qspec.artifact import seal_report, verify
from qspec.catalog import PACKING
from qspec.cli import main
from qspec.errors import InputError, MachineError
from qspec.evaluate import Evaluated
from qspec.evaluate.artifact import find_baseline
from qspec.evaluate.results import GateResult, Measurements
from qspec.files import sha256, write_whole
from qspec.manifest import FORMAT, CalibrationRecord, Manifest, ModelRecord
from qspec.report import ReportData, make, replace_report
from tests.report.sample import VERDICT, outlier_report, sample_report


def manifest(standin: bool = False, files: dict[str, str] | None = None, id: str = "tiny-llada") -> Manifest:
    return Manifest(
        format=FORMAT,
        packing=PACKING,
        qspec="0.1.0",
        name="llada_w4a4",
        recipe="qspec 1\n",
        model=ModelRecord(id=id, revision="main", family="llada", standin=standin, replacements=(), files=files or {}),
        calibration=CalibrationRecord(
            tokens_sha256="0" * 64,
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
        bits_per_weight=4.5,
        bits_per_weight_model=6.25,
        bytes_before=100,
        bytes_after=30,
        files={},
    ).sealed()


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    folder = tmp_path / "artifact"
    folder.mkdir()
    (folder / "qspec.json").write_text(manifest().text())
    return folder


def measured(blocks: int = 7) -> ReportData:
    """The sample, as that of the artifact."""
    data = sample_report(blocks)
    return dataclasses.replace(data, hashes={**data.hashes, "manifest": manifest().digest})


def test_report_renders_again_and_seals(artifact: Path, capsys: pytest.CaptureFixture[str]) -> None:
    replace_report(artifact, measured())
    before = (artifact / "report/report.html").read_bytes()
    (artifact / "report/report.html").unlink()
    assert main(["report", str(artifact)]) == 0
    assert (artifact / "report/report.html").read_bytes() == before
    assert capsys.readouterr().out.strip() == str(artifact / "report/report.html")
    verify(artifact)
    (artifact / "report/report.md").write_text("changed")
    with pytest.raises(InputError, match="was changed"):
        verify(artifact)


def test_a_report_is_replaced_whole(artifact: Path) -> None:
    replace_report(artifact, measured())
    assert (artifact / "report/figures/flips.svg").exists()
    replace_report(artifact, dataclasses.replace(measured(), flips=()))
    verify(artifact)
    assert not (artifact / "report/figures/flips.svg").exists()
    assert sorted(p.name for p in artifact.parent.iterdir()) == [artifact.name]
    assert sorted(p.name for p in artifact.iterdir()) == ["qspec.json", "report"]


def test_a_report_that_cannot_be_written_leaves_the_old_one(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace_report(artifact, measured())
    before = (artifact / "report/report.html").read_bytes()

    def full(_: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(qspec.report, "seal_report", full)
    with pytest.raises(MachineError, match="the disk is full"):
        replace_report(artifact, measured(2))
    assert (artifact / "report/report.html").read_bytes() == before
    verify(artifact)


@pytest.mark.parametrize("content", [None, "{", '{"format": 1}'])
def test_report_without_usable_data_is_one_message(
    artifact: Path, content: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    if content is not None:
        (artifact / "report").mkdir()
        (artifact / "report/report.json").write_text(content)
        seal_report(artifact)
    assert main(["report", str(artifact)]) == 3
    error = capsys.readouterr().err
    assert ("report.json" if content else "the artifact has no report") in error
    assert "Traceback" not in error


def test_report_data_that_were_changed_are_refused_not_sealed_again(
    artifact: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By hand, with the seal removed, with a stray among the report's files, or of another artifact."""
    replace_report(artifact, measured())
    path, seal = artifact / "report/report.json", artifact / "report/SHA256SUMS"
    content, sums = path.read_text(), seal.read_text()
    changed = json.loads(content) | {"bits_per_weight": 2.5}
    path.write_text(json.dumps(changed, indent=1) + "\n")
    assert main(["report", str(artifact)]) == 3
    assert "the report's data were changed after they were measured" in capsys.readouterr().err
    seal.unlink()
    assert main(["report", str(artifact)]) == 3
    assert "lost its seal" in capsys.readouterr().err
    assert not seal.exists()
    path.write_text(content)
    seal.write_text(sums)
    (artifact / "report/thesis.tex").write_text("precious")
    assert main(["report", str(artifact)]) == 3
    assert "does not belong to the report" in capsys.readouterr().err
    (artifact / "report/thesis.tex").rename(artifact.parent / "thesis.tex")
    (artifact / "qspec.json").write_text(manifest(files={"another": "1"}).text())
    assert main(["report", str(artifact)]) == 3
    assert "the report is of another artifact" in capsys.readouterr().err
    (artifact / "qspec.json").write_text(manifest().text())
    verify(artifact)


def test_a_report_that_was_moved_aside_by_a_killed_process_comes_back(artifact: Path) -> None:
    replace_report(artifact, measured())
    before = (artifact / "report/report.json").read_bytes()
    (artifact / ".report.partial").mkdir()
    (artifact / "report").rename(artifact / ".report.partial/old")
    with pytest.raises(InputError, match="of another artifact"):
        replace_report(artifact, sample_report())
    verify(artifact)
    replace_report(artifact, measured())
    assert (artifact / "report/report.json").read_bytes() == before


def test_several_reports_of_one_artifact_at_once(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Locks are the open file's, so threads stand in for processes; a reader meets a report that is whole, or none."""

    def small(folder: Path, _: ReportData) -> dict[str, Any]:
        for number in range(4):
            write_whole(folder / f"{number}.md", f"{threading.get_native_id()} " * 1000)
        return {}

    def rounds(_: int) -> None:
        for _ in range(8):
            replace_report(artifact, measured(2))
            verify(artifact)

    monkeypatch.setattr(qspec.report, "write_report", small)
    monkeypatch.setattr(os, "fsync", lambda _: None)
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(rounds, range(4)))
    verify(artifact)
    assert (artifact / "report/0.md").is_file()
    assert sorted(p.name for p in artifact.iterdir()) == ["qspec.json", "report"]


def test_report_of_what_is_no_artifact(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(tmp_path)]) == 3
    assert "not a qspec artifact" in capsys.readouterr().err


def test_eval_writes_the_report_and_prints_its_results_where_it_cannot(
    artifact: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (artifact / "qspec.json").write_text(manifest(standin=True).text())
    asked = []

    def evaluated(*arguments: object) -> Evaluated:
        asked.append(arguments[:4])
        data = sample_report()
        found = Measurements(data.metrics, data.kl, data.flips, data.samples, (), (), 3, {"gsm8k": 1.0})
        return Evaluated(manifest(standin=True), found, outlier_report(2), "CPU reference", 2.0)

    monkeypatch.setattr(make, "evaluate_artifact", evaluated)
    arguments = [str(artifact), "--model", "original", "--device", "cpu", "--files", "here", "--quiet"]
    assert main(["eval", *arguments]) == 0
    assert asked == [(artifact, "original", "cpu", Path("here"))]
    out = capsys.readouterr().out
    assert out.splitlines()[:2] == [
        VERDICT,
        "Bits per weight: 4.50 in the blocks, 6.25 in the whole model.",
    ]
    assert out.rstrip().endswith(str(artifact / "report/report.html"))
    verify(artifact)
    content = json.loads((artifact / "report/report.json").read_text())
    assert content["execution"] == "CPU reference"
    assert content["timings"] == {"gsm8k": 1.0}
    assert content["environment"]["torch"]
    assert main(["eval", *arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["metrics"] == content["metrics"]

    def refuse(_: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(qspec.report, "report_lock", refuse)  # as root, who may write everywhere
    assert main(["eval", *arguments]) == 3
    printed = capsys.readouterr()
    assert printed.out == out.split("\nreport: ")[0]
    assert "cannot write here: Permission denied" in printed.err


def test_a_limited_run_never_replaces_a_full_report(artifact: Path) -> None:
    full, cut = measured(), dataclasses.replace(measured(), limit=4)
    replace_report(artifact, cut)
    replace_report(artifact, full)
    before = (artifact / "report/report.json").read_bytes()
    with pytest.raises(InputError, match="a run limited to 4 items does not replace a full report"):
        replace_report(artifact, cut)
    assert (artifact / "report/report.json").read_bytes() == before
    verify(artifact)


def test_eval_with_a_limit_prints_its_results_and_leaves_the_full_report(
    artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    replace_report(artifact, measured())
    before = (artifact / "report/report.json").read_bytes()
    monkeypatch.setattr(
        make, "measure_report", lambda *_, how: dataclasses.replace(measured(), limit=how.limit)
    )  # fmt: skip
    assert main(["eval", str(artifact), "--limit", "4"]) == 0
    printed = capsys.readouterr()
    assert printed.out.startswith("Large loss on the stand-in tiny-llada, limited to 4 items: ")
    assert "the full report there stays as it is (--report DIR)" in printed.err
    assert "report:" not in printed.out
    assert (artifact / "report/report.json").read_bytes() == before
    assert main(["eval", str(artifact), "--limit", "4", "--report", str(tmp_path / "short"), "--quiet"]) == 0
    assert capsys.readouterr().out.endswith(f"report: {tmp_path / 'short' / 'report.html'}\n")
    assert ReportData.read(tmp_path / "short/report.json").limit == 4
    assert (artifact / "report/report.json").read_bytes() == before


def test_a_failed_gate_is_exit_code_4_and_a_failed_test_case(
    artifact: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    passed = GateResult("nelbo loss <= 4 %", True, "3.42 %, n = 3")
    failed = GateResult("gsm8k loss <= 3 points", False, "16.67 points & more, n = 48")
    for gates, code in (((passed, failed), 4), ((passed,), 0), ((), 0)):
        data = dataclasses.replace(measured(), gates=gates)
        monkeypatch.setattr(make, "measure_report", lambda *_, data=data, **__: data)
        assert main(["eval", str(artifact), "--quiet"]) == code
        verify(artifact)
        content = json.loads((artifact / "report/report.json").read_text())
        assert content["verdict_passed"] is {4: False, 0: True if gates else None}[code]
        cases = artifact / "report/junit.xml"
        if gates:
            suite = ElementTree.fromstring(cases.read_text())
            assert [suite.get(key) for key in ("tests", "failures")] == [str(len(gates)), str(code // 4)]
            assert [case.get("name") for case in suite] == [f"require {gate.gate}" for gate in gates]
            found = [case.find("failure") for case in suite]
            assert [None if one is None else one.get("message") for one in found] == [
                None if gate.passed else gate.found for gate in gates
            ]
        else:
            assert not cases.exists()
    out = capsys.readouterr().out
    assert out.startswith("1 of 2 gates failed. Large loss on the stand-in tiny-llada: ")
    assert "\nGate failed: gsm8k loss <= 3 points (16.67 points & more, n = 48).\n" in out
    assert "\nAll gates passed. Large loss" in out


def test_the_baseline_must_be_the_checkpoint_that_was_compiled(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    files = {"config.json": sha256(folder / "config.json")}
    assert find_baseline(manifest(files=files).model, str(folder)) == folder
    assert find_baseline(manifest(files=files, id=str(folder)).model, None) == folder
    (folder / "config.json").write_text("{ }")
    with pytest.raises(InputError, match=r"config\.json is another file"):
        find_baseline(manifest(files=files).model, str(folder))
    (folder / "config.json").unlink()
    with pytest.raises(InputError, match=r"config\.json is missing"):
        find_baseline(manifest(files=files).model, str(folder))


def test_a_baseline_that_is_gone(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        find_baseline(manifest(id=str(tmp_path / "gone")).model, None)
    assert caught.value.hint == "give it: qspec eval ARTIFACT --model FOLDER"


def test_the_bundled_standin_is_found_again() -> None:
    assert find_baseline(manifest(standin=True).model, None).name == "tiny-llada"
