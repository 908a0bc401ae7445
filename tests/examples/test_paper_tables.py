"""examples/paper_tables: the grid goes on where it was, and its tables are the results'."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import qspec
from qspec.cli import main
from qspec.errors import MachineError
from qspec.evaluate.results import size
from qspec.report import ReportData
from tests.end_to_end.conftest import Mini

RECIPE = """\
qspec 1

recipe cell {{
  family llada
  model  "{model}"
}}

calibrate {{
  text    file("{text}")
  samples 2
  length  16
}}

scheme low {{
  weights     int{bits} per channel symmetric
  activations none
}}

layers blocks[*].* use low

apply rtn() on blocks[*].*

evaluate {{
  nelbo on file("{text}") samples 2
}}

emit {{
  kernels triton for sm_90
  regime  full_sequence
}}
"""


def metric(task: str, kind: str, before: float, after: float) -> dict[str, Any]:
    drop = 100 * (after - before if kind == "nelbo" else before - after) / before
    return {"task": task, "metric": kind, "baseline": before, "quantized": after, "tier": size(drop), "source": ""}


def test_columns_name_the_stand_ins_own_data(paper_tables: SimpleNamespace) -> None:
    known = metric("gsm8k", "exact_match", 0.5, 0.5) | {"source": "stand-in arithmetic"}
    table = paper_tables.tables.make_table("tiny", [result("w4a4", "RTN", 4.0, known)])
    assert table.columns[0] == "stand-in arithmetic (for gsm8k)"


def result(setting: str, method: str, bits: float, *metrics: dict[str, Any]) -> dict[str, Any]:
    return {
        "setting": setting,
        "method": method,
        "bits_per_weight": bits,
        "bits_per_weight_model": bits + 1,
        "metrics": list(metrics),
    }


RESULTS = [
    result(
        "w4a4", "QuaRot", 4.01,
        metric("text", "nelbo", 2.0, 2.1),  # 5 % more
        metric("mmlu", "exact_match", 0.6, 0.58),  # 3.3 % less
        metric("mmlu", "choice_accuracy", 0.7, 0.1),  # not the task's first: left out
        metric("gsm8k", "exact_match", 0.4, 0.41),
    ),
    result(
        "w4a16", "GPTQ", 4.156,
        metric("text", "nelbo", 2.0, 2.01),
        metric("mmlu", "exact_match", 0.6, 0.6),
        metric("gsm8k", "exact_match", 0.4, 0.35),  # 12.5 % less
    ),
    result("w4a4", "DuQuant", 4.02, metric("text", "nelbo", 2.0, 2.05)),
]  # fmt: skip


def test_the_table_by_hand(paper_tables: SimpleNamespace) -> None:
    table = paper_tables.tables.make_table("m", RESULTS)
    assert table.columns == ("NELBO", "mmlu", "gsm8k", "average", "bits, blocks", "bits, model")
    assert [(row.setting, row.method) for row in table.rows] == [
        ("FP", "unquantized"),
        ("w4a16", "GPTQ"),
        ("w4a4", "QuaRot"),
        ("w4a4", "DuQuant"),
    ]
    plain, gptq, quarot, duquant = (row.values for row in table.rows)
    assert {name: text for name, (text, _) in plain.items()} == {
        "NELBO": "2.0000", "mmlu": "60.0", "gsm8k": "40.0", "average": "50.0",
        "bits, blocks": "16.00", "bits, model": "16.00",
    }  # fmt: skip
    assert {kind for _, kind in plain.values()} == {"small"}
    # means (0.6 + 0.35) / 2 and (0.58 + 0.41) / 2 against 0.5: 5 % and 1 % lost
    assert gptq["average"] == ("47.5", "large")
    assert quarot["average"] == ("49.5", "medium")
    assert quarot["NELBO"] == ("2.1000", "large")
    assert (quarot["mmlu"], quarot["gsm8k"]) == (("58.0", "medium"), ("41.0", "better"))
    assert (quarot["bits, blocks"], quarot["bits, model"]) == (("4.01", "small"), ("5.01", "small"))
    assert set(duquant) == {"NELBO", "bits, blocks", "bits, model"}


def test_a_model_that_knows_nothing_has_no_tier(paper_tables: SimpleNamespace) -> None:
    known = metric("gsm8k", "exact_match", 1.0, 0.0) | {"baseline": 0.0, "tier": "undefined"}
    table = paper_tables.tables.make_table("m", [result("w4a4", "RTN", 4.0, known)])
    assert table.rows[1].values["average"] == ("0.0", "undefined")


def test_markdown(paper_tables: SimpleNamespace) -> None:
    text = paper_tables.tables.markdown([paper_tables.tables.make_table("tiny", RESULTS)])
    assert text.startswith(
        "## tiny\n\n"
        "| setting | method | NELBO | mmlu | gsm8k | average | bits, blocks | bits, model |\n"
        "|---|---|---|---|---|---|---|---|\n"
        "| FP | unquantized | 2.0000 | 60.0 | 40.0 | 50.0 | 16.00 | 16.00 |\n"
        "| W4A16 | GPTQ | 2.0100 | 60.0 | 35.0 ▼ | 47.5 ▼ | 4.16 | 5.16 |\n"
        "| W4A4 | QuaRot | 2.1000 ▼ | 58.0 ▾ | 41.0 | 49.5 ▾ | 4.01 | 5.01 |\n"
        "| W4A4 | DuQuant | 2.0500 ▾ |  |  |  | 4.02 | 5.02 |\n"
    )
    assert text.endswith("(averages are marked by size alone).\n")


class Cells(HTMLParser):
    """(class, text) of every table cell."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str | None, str]] = []
        self.tags: set[str] = set()
        self._kind: str | None = None
        self._inside = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self._inside, self._kind = tag == "td", dict(attrs).get("class")

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.found.append((self._kind, data))


def test_the_page_is_whole_and_its_text_is_text(paper_tables: SimpleNamespace) -> None:
    page = paper_tables.tables.page([paper_tables.tables.make_table("<img src=x>", RESULTS)])
    cells = Cells(page)
    assert {"script", "img", "link"}.isdisjoint(cells.tags)
    assert "&lt;img src=x&gt;" in page
    assert ("large", "2.1000") in cells.found
    assert ("medium", "58.0") in cells.found
    assert ("better", "41.0") in cells.found
    assert page.count("class=wide") == 1
    assert page.count("<tr class=first>") == 3  # FP, W4A16, W4A4


def test_the_cells_are_the_papers(paper_tables: SimpleNamespace) -> None:
    """Table by table, each method at each setting at which the paper has it, under the floor of rounding."""
    names = [cell.name for cell in paper_tables.cells.all_cells()]
    assert names == [
        "rtn_w4a16", "gptq_w4a16", "awq_w4a16",
        "rtn_w3a16", "gptq_w3a16", "awq_w3a16",
        "rtn_w8a8", "smoothquant_w8a8", "quarot_w8a8", "duquant_w8a8",
        "rtn_w4a4", "smoothquant_w4a4", "quarot_w4a4", "duquant_w4a4",
    ]  # fmt: skip
    assert paper_tables.cells.all_cells()[1].method == "GPTQ"


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The recipes that were compiled, as they are compiled."""
    names: list[str] = []
    real = qspec.compile

    def spy(recipe: Path, *rest: Any, **more: Any) -> Any:
        names.append(recipe.stem)
        return real(recipe, *rest, **more)

    monkeypatch.setattr(qspec, "compile", spy)
    return names


@pytest.mark.slow
def test_a_grid_goes_on_where_it_was(
    paper_tables: SimpleNamespace, mini: Mini, tmp_path: Path, compiled: list[str]
) -> None:
    text = mini.recipe.parent / "text.txt"
    cells = []
    for bits in (8, 4):
        recipe = tmp_path / f"rtn_w{bits}a16.qs"
        recipe.write_text(RECIPE.format(model=mini.model, text=text, bits=bits))
        cells.append(paper_tables.cells.Cell(recipe.stem, "RTN", f"w{bits}a16", recipe))
    out = tmp_path / "out"

    def run(limit: int | None = None) -> list[str]:
        compiled.clear()
        paper_tables.run.run_cells(str(mini.model), cells, out, "cpu", {}, limit)
        return list(compiled)

    assert run() == ["rtn_w8a16", "rtn_w4a16"]
    reports = {cell.name: (out / cell.name / "report/report.json").read_bytes() for cell in cells}
    assert run() == []
    assert reports == {cell.name: (out / cell.name / "report/report.json").read_bytes() for cell in cells}

    results = paper_tables.run.collect(cells, out)
    assert [(one["cell"], one["method"], one["setting"]) for one in results] == [
        ("rtn_w8a16", "RTN", "w8a16"),
        ("rtn_w4a16", "RTN", "w4a16"),
    ]
    assert [one["bits_per_weight"] for one in results] == [
        json.loads(report)["bits_per_weight"] for report in reports.values()
    ]
    written = tmp_path / "results.json"
    written.write_text(json.dumps({"mini": results}))
    assert main(["report", str(out / "rtn_w8a16"), "--with", str(written)]) == 0
    (other,) = ReportData.read(out / "rtn_w8a16/report/report.json").compared
    assert (other.name, other.bits_per_weight) == ("cell", results[1]["bits_per_weight"])

    cells[1].recipe.write_text(RECIPE.format(model=mini.model, text=text, bits=3))
    assert run() == ["rtn_w4a16"], "a recipe that was changed is compiled again, and it alone"
    assert run(limit=1) == ["rtn_w8a16", "rtn_w4a16"], "fewer items are another measurement"
    metrics = json.loads((out / "rtn_w4a16/report/report.json").read_text())["metrics"]
    assert [one["n"] for one in metrics] == [1]
    assert len(paper_tables.run.collect(cells, out, 1)) == 2
    assert paper_tables.run.collect(cells, out) == [], "a table does not mix limits"
    assert paper_tables.run.collect(cells, out, 1, {"seed": "1"}) == [], "nor parameters"


def test_a_cell_that_failed_is_no_longer_finished(
    paper_tables: SimpleNamespace, mini: Mini, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its mark is of what was there before."""
    recipe = tmp_path / "a.qs"
    recipe.write_text(RECIPE.format(model=mini.model, text=mini.recipe.parent / "text.txt", bits=8))
    cell = paper_tables.cells.Cell("a", "RTN", "w8a16", recipe)
    (tmp_path / "a.done").write_text("limit None\nof another recipe")

    def fails(*_: Any, **__: Any) -> None:
        raise MachineError("the disk is full")

    monkeypatch.setattr(qspec, "compile", fails)
    with pytest.raises(MachineError):
        paper_tables.run.run_cells(str(mini.model), [cell], tmp_path, "cpu", {})
    assert paper_tables.run.collect([cell], tmp_path) == []


def test_a_cell_that_was_not_measured_is_not_a_result(paper_tables: SimpleNamespace, tmp_path: Path) -> None:
    cell = paper_tables.cells.Cell("a", "RTN", "w4a4", tmp_path / "a.qs")
    (tmp_path / "a" / "report").mkdir(parents=True)
    (tmp_path / "a" / "report" / "report.json").write_text("{}")
    assert paper_tables.run.collect([cell], tmp_path) == []


def test_an_unknown_cell_is_named(
    paper_tables: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["run.py", "--cells", "gptq_w3a16,gptq_w1a1"])
    with pytest.raises(SystemExit) as stop:
        paper_tables.run.main()
    assert stop.value.code == 2
    assert "there is no cell 'gptq_w1a1'; there are rtn_w4a16, " in capsys.readouterr().err


@pytest.mark.slow
def test_the_command_makes_the_tables_of_a_stand_in(paper_tables: SimpleNamespace, tmp_path: Path) -> None:
    """Two processes, two cells; the second run finds both finished."""
    import subprocess
    import sys

    script = str(Path(paper_tables.run.__file__))
    command = [sys.executable, script, "--model", "tiny-llada", "--cells", "rtn_w8a8,rtn_w4a4", "--jobs", "2"]
    command += ["--limit", "4", "--device", "cpu", "--out", str(tmp_path)]
    first = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "rtn_w8a8: compiled in" in first.stdout
    results = json.loads((tmp_path / "results.json").read_text())
    assert [one["cell"] for one in results["tiny-llada"]] == ["rtn_w8a8", "rtn_w4a4"]
    assert (tmp_path / "tables.md").read_text() in first.stdout
    assert "| W4A4 | RTN |" in (tmp_path / "tables.md").read_text()
    assert "<td>W4A4</td><td>RTN</td>" in (tmp_path / "tables.html").read_text()
    again = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "compiled in" not in again.stdout
    assert again.stdout.count("finished before") == 2
