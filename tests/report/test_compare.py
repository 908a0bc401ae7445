"""`qspec report ARTIFACT --with RESULTS`: other recipes' results in the report of one artifact."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from qspec.artifact import verify
from qspec.cli import main
from qspec.errors import InputError
from qspec.report import ReportData, replace_report, report_json, write_report
from qspec.report.compare import compare, compared_table
from qspec.report.data import Compared
from qspec.report.figures import pareto
from tests.report.sample import HOSTILE, hostile_report, rounded, sample_report
from tests.report.test_commands import manifest

CHECKPOINT = {"checkpoint model.safetensors": "d4" * 32}


def plain() -> ReportData:
    data = sample_report()
    return dataclasses.replace(data, compared=(), hashes={**data.hashes, "manifest": manifest().digest})


def other(name: str, digest: str, bits: float, checkpoint: dict[str, str] = CHECKPOINT) -> ReportData:
    """Another recipe's report: of the sample's metrics, only the NELBO."""
    data = plain()
    return dataclasses.replace(
        data,
        recipe=dataclasses.replace(data.recipe, name=name),
        bits_per_weight=bits,
        bits_per_weight_model=bits + 1,
        metrics=data.metrics[:1],
        hashes={**checkpoint, "manifest": digest},
    )


def write(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content))
    return path


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    folder = tmp_path / "artifact"
    folder.mkdir()
    (folder / "qspec.json").write_text(manifest().text())
    replace_report(folder, plain())
    return folder


def held(artifact: Path) -> list[tuple[str, float]]:
    """What the artifact's report.json compares."""
    return [(one.name, one.bits_per_weight) for one in ReportData.read(artifact / "report/report.json").compared]


def test_the_page_and_the_json_hold_the_other_recipes(artifact: Path, tmp_path: Path) -> None:
    first = write(tmp_path / "first.json", report_json(other("gptq", "1", 4.2)))
    second = write(tmp_path / "second.json", report_json(other("rtn", "2", 3.1)))
    assert main(["report", str(artifact), "--with", str(first), "--with", str(second)]) == 0
    verify(artifact)
    assert held(artifact) == [("gptq", 4.2), ("rtn", 3.1)]
    for name in ("report.html", "report.md"):
        text = (artifact / "report" / name).read_text()
        assert "Other recipes" in text
        assert text.count("1.4633") >= 2  # the unquantized model's NELBO: in the quality table and in this one
    pages = {name: (artifact / "report" / name).read_bytes() for name in ("report.html", "report.md", "report.json")}
    first.unlink()
    assert main(["report", str(artifact)]) == 0, "rendering again needs the report alone"
    assert all((artifact / "report" / name).read_bytes() == old for name, old in pages.items())
    assert main(["report", str(artifact), "--with", str(second)]) == 0
    assert held(artifact) == [("rtn", 3.1)]


def test_other_artifacts_are_compared_by_their_folders(artifact: Path, tmp_path: Path) -> None:
    """Another artifact of the same checkpoint: the table, and a plot of both losses against bits."""
    second = tmp_path / "second"
    second.mkdir()
    (second / "qspec.json").write_text(manifest(id="other").text())
    data = other("rtn", manifest(id="other").digest, 3.1)
    replace_report(second, data)
    assert main(["report", str(artifact), str(second)]) == 0
    verify(artifact)
    assert held(artifact) == [("rtn", 3.1)]
    page = (artifact / "report/report.html").read_text()
    section = page[page.index('<section id="recipes">') :].partition("</section>")[0]
    assert section.count("<svg") == 1
    for text in ("<title>rtn: 4.10 bits, 3.4 % lost</title>", "<title>llada_w4a4: 5.02 bits, 3.4 % lost</title>"):
        assert text in section  # of the sample's NELBO, 3.4 %; bits of the whole model
    (second / "report/report.json").write_text("{}")
    assert main(["report", str(artifact), str(second)]) == 3, "changed after it was measured"


def test_nothing_in_common_is_not_plotted() -> None:
    lone = dataclasses.replace(plain(), metrics=plain().metrics[:1], compared=(rounded_without_nelbo(),))
    assert pareto(lone) is None


def rounded_without_nelbo() -> Compared:
    return dataclasses.replace(rounded(), metrics=rounded().metrics[1:])


def test_a_grid_gives_the_list_of_the_same_checkpoint_without_this_artifact(artifact: Path, tmp_path: Path) -> None:
    """results.json: model -> reports in report.json's schema, with cell, method and setting."""

    def cell(data: ReportData) -> dict[str, Any]:
        return {"cell": data.recipe.name, "method": "A", "setting": "w4a4", **report_json(data)}

    own = dataclasses.replace(plain(), bits_per_weight=9.0)
    grid = {
        "one": [cell(other("stranger", "3", 2.0, {"checkpoint model.safetensors": "00" * 32}))],
        "two": [cell(other("gptq", "1", 4.2)), cell(own), cell(other("rtn", "2", 3.1))],
    }
    path = write(tmp_path / "results.json", grid)
    assert main(["report", str(artifact), "--with", str(path), "--with", str(path)]) == 0
    assert held(artifact) == [("gptq", 4.2), ("rtn", 3.1)]


def test_the_table_by_hand() -> None:
    """The sample's own metrics, one recipe without humaneval and with another gsm8k, one with more bits."""
    table = compared_table(sample_report())
    assert table is not None
    heads = [(column.task, column.metric, column.n) for column in table.columns]
    assert heads == [
        ("wikitext2", "nelbo", 3),
        ("mmlu", "exact_match", 48),
        ("gsm8k", "exact_match", 48),
        ("humaneval", "exact_match", 48),
        ("gsm8k", "exact_match", 12),
    ]
    assert [(row.name, row.bits, row.model_bits, row.own) for row in table.rows] == [
        (None, 16.0, 16.0, False),
        ("llada_w8a8", 8.11, 8.52, False),
        ("llada_w4a4", 4.427, 5.018, True),
        ("llada_rtn_w4a4", 4.11, 4.73, False),
    ]
    unquantized, w8a8, own, rounded = (row.cells for row in table.rows)
    # The texts' means are (1.40 + 1.52 + 1.47) / 3 and, with 0.01 more each, 0.01 above: a rise of 0.68 %.
    assert unquantized[0] == (pytest.approx(4.39 / 3), None)
    assert unquantized[1:] == ((1.0, None), (pytest.approx(47 / 48), None), (1.0, None), (1.0, None))
    assert w8a8 == ((pytest.approx(4.42 / 3), "small"), (1.0, "within noise"), None, None, None)
    assert own[1:] == (
        (pytest.approx(47 / 48), "within noise"),
        (pytest.approx(39 / 48), "large"),  # 8 of 47 lost
        (pytest.approx(47 / 48), "within noise"),  # 1 of 48 lost
        None,
    )
    assert rounded[1:] == ((0.0, "large"), None, None, (0.0, "large"))


def test_nothing_compared_no_section(artifact: Path) -> None:
    assert compared_table(plain()) is None
    assert "Other recipes" not in (artifact / "report/report.html").read_text()
    assert "Other recipes" not in (artifact / "report/report.md").read_text()


def test_the_own_row_is_marked(tmp_path: Path) -> None:
    write_report(tmp_path, sample_report())
    page, text = (tmp_path / "report.html").read_text(), (tmp_path / "report.md").read_text()
    section = page[page.index('<section id="recipes">') :].partition("</section>")[0]
    assert '<a href="#recipes">' in page
    assert section.count('<div class="scroll"><table') == 1
    (own,) = [line for line in section.splitlines() if 'aria-current="true"' in line]
    assert "<td>llada_w4a4<small>this report</small></td>" in own
    assert '81.2 %<small><span class="tier large">large</span></small>' in own
    rows = text[text.index("## Other recipes") : text.index("<details>")].strip().splitlines()[2:]
    assert len({row.count("|") for row in rows}) == 1
    assert rows[2:] == [
        "| unquantized | 16.00 | 16.00 | 1.4633 | 100.0 % | 97.9 % | 100.0 % | 100.0 % |",
        "| llada\\_w8a8 | 8.11 | 8.52 | 1.4733 small | 100.0 % within noise | – | – | – |",
        "| **llada\\_w4a4**, this report | 4.43 | 5.02 | 1.5133 medium | 97.9 % within noise | 81.2 % large "
        "| 97.9 % within noise | – |",
        "| llada\\_rtn\\_w4a4 | 4.11 | 4.73 | 5.4967 large | 0.0 % large | – | – | 0.0 % large |",
    ]


def test_hostile_names_are_text(tmp_path: Path) -> None:
    data = hostile_report()
    assert data.compared[0].name.endswith(HOSTILE)
    write_report(tmp_path, data)
    page = (tmp_path / "report.html").read_text()
    section = page[page.index('<section id="recipes">') :].partition("</section>")[0]
    assert section.count("&lt;script&gt;") >= 3 + 5
    assert "<script" not in section


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (report_json(other("a", "1", 4.0, {"checkpoint model.safetensors": "00" * 32})), "no result of tiny"),
        ({"tiny": [report_json(other("a", "1", 4.0, {}))]}, "no result of tiny-llada"),
        ({"tiny": []}, "no result of tiny-llada"),
        ({}, "neither a report.json nor the results.json"),
        ({"cells": 3}, "neither a report.json nor the results.json"),
        ({"tiny": [{"format": 1}]}, "not the data of a report: an earlier qspec wrote it, in format 1"),
        ({"tiny": [7]}, "not the data of a report"),
        ({"format": 2}, "not the data of a report: an earlier qspec wrote it, in format 2"),
        ([], "not the data of a report: it is not an object"),
    ],
)
def test_results_that_do_not_fit_are_one_message(
    artifact: Path, tmp_path: Path, content: Any, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (artifact / "report/report.json").read_bytes()
    path = write(tmp_path / "results.json", content)
    assert main(["report", str(artifact), "--with", str(path)]) == 3
    error = capsys.readouterr().err
    assert message in error
    assert str(path) in error
    assert "next:" in error
    assert (artifact / "report/report.json").read_bytes() == before


def test_results_that_are_not_there(artifact: Path, tmp_path: Path) -> None:
    for path in (tmp_path / "gone.json", tmp_path):
        with pytest.raises(InputError, match="cannot be read"):
            compare(ReportData.read(artifact / "report/report.json"), [path])
