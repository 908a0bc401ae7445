"""examples/paper_tables/masking.py: the spread over seeds, and the table from finished reports."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from qspec import passes
from qspec.language import load_recipe
from qspec.models.registry import FAMILIES


def test_spread_by_hand(paper_tables: SimpleNamespace) -> None:
    """1, 2, 4: mean 7/3, squared distances 16/9, 1/9 and 25/9, their sum over n - 1 = 2 is 7/3."""
    assert paper_tables.masking.spread([1.0, 2.0, 4.0]) == (pytest.approx(7 / 3), pytest.approx((7 / 3) ** 0.5))
    assert paper_tables.masking.spread([5.0]) == (5.0, 0.0)


def write_report(
    tools: SimpleNamespace, folder: Path, nelbo: float, accuracies: tuple[float, ...], limit: int | None = None
) -> None:
    """A cell that masking.py finished with this limit: its report, and the mark beside it."""
    metrics = [{"task": "text", "metric": "nelbo", "quantized": nelbo, "source": ""}]
    metrics += [
        {"task": f"t{i}", "metric": "exact_match", "quantized": a, "source": ""} for i, a in enumerate(accuracies)
    ]
    metrics.append({"task": "t0", "metric": "choice_accuracy", "quantized": 0.0, "source": ""})  # not the task's first
    path = folder / "report" / "report.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"metrics": metrics}))
    share = dict(tools.masking.SHARES)[folder.parents[1].name]
    how = tools.run.how(limit, {"masked": share, "seed": folder.parent.name})
    folder.with_name(f"{folder.name}.done").write_text(f"{how}\nlock")


def test_the_table_by_hand(paper_tables: SimpleNamespace, tmp_path: Path) -> None:
    """Means over the seeds that are there; an accuracy is the mean over the tasks."""
    cells = {cell.setting: cell.name for cell in paper_tables.masking.recipes()}
    home = tmp_path / "tiny-x"
    write_report(paper_tables, home / "clean/0" / cells["w3a16"], 1.0, (0.5, 0.7))
    write_report(paper_tables, home / "clean/1" / cells["w3a16"], 1.2, (0.6, 0.8))
    write_report(paper_tables, home / "masked/0" / cells["w2a16"], 3.0, (0.25, 0.5))
    write_report(paper_tables, home / "masked/1" / cells["w2a16"], 9.0, (0.0, 0.0), limit=4)  # another limit
    text, rows = paper_tables.masking.table(tmp_path, ["folder/tiny-x"], 3)
    # 60 % and 70 %: sd 7.07; 1.0 and 1.2: sd 0.1414
    assert text.splitlines()[2:4] == [
        "| tiny-x | W3A16 | clean | 1.1000 ± 0.1414 | 65.0 ± 7.1 | 2 |",
        "| tiny-x | W2A16 | masked | 3.0000 ± 0.0000 | 37.5 ± 0.0 | 1 |",
    ]
    assert [(row["calibration"], row["nelbo"]) for row in rows] == [("clean", [1.0, 1.2]), ("masked", [3.0])]
    assert rows[0]["accuracy"] == [pytest.approx(60.0), pytest.approx(70.0)]


def test_each_recipe_takes_the_share_and_the_seed(paper_tables: SimpleNamespace) -> None:
    for cell in paper_tables.masking.recipes():
        for _, share in paper_tables.masking.SHARES:
            settings = {"masked": share, "seed": "2"}
            calibrate = load_recipe(cell.recipe, passes.available(), settings, FAMILIES).spec.calibrate
            assert calibrate.seed == 2
            assert f", {float(share)})" in str(calibrate.mask)
