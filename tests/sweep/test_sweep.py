"""A sweep's numbers by hand, its grid, and its pages."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from qspec.cli import main
from qspec.data import TaskData, TaskItem
from qspec.data.items import CHOICES, EXACT
from qspec.errors import InputError
from qspec.evaluate.trajectories import Trajectory
from qspec.models.sampler import SamplerSettings
from qspec.sweep import Cell, Sweep, write_sweep
from qspec.sweep.run import Grid, _cell, _points, _task
from tests.evaluate.models import EOS, shape

TASK = TaskData("gsm8k", "arithmetic", (EXACT,), (TaskItem("1+1=", "2"),), length=8, steps=8, block=4)


def run(*rows: list[int]) -> Trajectory:
    tokens = torch.tensor(rows)
    return Trajectory(tokens, torch.arange(tokens.shape[1]).expand_as(tokens).clone())


def test_a_cell_by_hand() -> None:
    """Of four tokens, fewer steps change 1 and quantization 1 in the first text, 0 and 2 in the second; both change 3
    and 2. Expected 1 - 3/4 3/4 = 7/16 and 1 - 1 1/2 = 1/2; beyond 3/4 - 7/16 = 5/16 and 0."""
    reference = (run([1, 2, 3, 4], [1, 2, 3, 4]), run([1, 2, 3, 9], [1, 2, 9, 9]))
    cell = (run([9, 2, 3, 4], [1, 2, 3, 4]), run([9, 9, 3, 9], [1, 9, 3, 9]))
    found = _cell({"steps": 4}, SamplerSettings(4, 4, 4), cell, reference, torch.ones(2, 4, dtype=torch.bool), [EOS])
    assert (found.unquantized, found.quantized) == (1 / 8, (3 / 4 + 2 / 4) / 2)
    assert found.expected == pytest.approx((7 / 16 + 1 / 2) / 2)
    assert found.beyond == pytest.approx((5 / 16 + 0) / 2)
    assert found.interval == (pytest.approx(0), pytest.approx(5 / 16))  # of two texts, from the one to the other
    assert found.finding == "within noise"
    assert found.passes == 4
    assert (found.flips.same_texts, found.flips.texts) == (0, 2)


def test_only_the_reference_counts_up_to_its_end() -> None:
    reference = (run([1, EOS, 3, 4]), run([1, EOS, 5, 5]))
    counted = torch.tensor([[True, True, False, False]])
    found = _cell({}, SamplerSettings(4, 4, 4), (run([1, EOS, 7, 7]), run([2, EOS, 7, 7])), reference, counted, [EOS])
    assert (found.unquantized, found.quantized, found.interval) == (0, 0.5, None)


def test_the_grid_is_every_combination_that_the_sampler_takes() -> None:
    grid = Grid((1.0, 0.5, 0.125), {"block": (4, 3), "threshold": (None, 0.9)})
    points, skipped = _points(grid, TASK, shape(), 5)
    assert [named for named, _ in points] == [
        {"steps": 8, "block": 4},
        {"steps": 4, "block": 4},
        {"steps": 8, "block": 4, "threshold": 0.9},
        {"steps": 4, "block": 4, "threshold": 0.9},
    ]
    assert points[0][1] == SamplerSettings(8, 8, 4, seed=5, stop=True)
    assert points[3][1] == SamplerSettings(8, 4, 4, seed=5, threshold=0.9, stop=True)
    assert len(skipped) == 3 * 4 - 4
    assert "steps 1, block 4: steps 1 is not a multiple of the 2 blocks" in skipped
    with pytest.raises(InputError, match="no point of the grid fits the sampler"):
        _points(Grid((1.0,), {"block": (3,)}), TASK, shape(), 0)


def test_texts_of_another_length() -> None:
    assert Grid().sized(TASK) is TASK
    sized = Grid(length=2 * TASK.length).sized(TASK)
    assert (sized.length, sized.steps, sized.block) == (2 * TASK.length, 2 * TASK.steps, TASK.block)
    short = Grid(length=2).sized(TASK)
    assert (short.length, short.steps, short.block) == (2, 2, 2)  # one token a step, as before
    assert list(Grid((0.5,), length=16).cells(Grid(length=16).sized(TASK))) == [{"steps": 8}]


def test_the_task_is_one_that_is_denoised() -> None:
    rated = dataclasses.replace(TASK, name="piqa", scorings=(CHOICES,))
    assert _task([rated, TASK], None) == TASK
    with pytest.raises(InputError) as caught:
        _task([rated, TASK], "piqa")
    assert caught.value.hint == "tasks that are denoised there: gsm8k"
    with pytest.raises(InputError, match="no task that is denoised"):
        _task([rated], None)


def cell(steps: int, quantized: float, interval: tuple[float, float], **others: object) -> Cell:
    reference = run([1, 2])
    plain = _cell({}, SamplerSettings(2, 2, 2), (reference,) * 2, (reference,) * 2, torch.ones(1, 2).bool(), [EOS])
    return dataclasses.replace(
        plain, settings={"steps": steps, **others}, passes=float(steps), unquantized=0.1, quantized=quantized,
        expected=0.2, beyond=quantized - 0.2, interval=interval,
    )  # fmt: skip


def sweep(*cells: Cell, standin: bool = True) -> Sweep:
    return Sweep(
        model="tiny-llada<script>", standin=standin, recipe="r", bits="4.13 in the blocks", task="gsm8k", items=16,
        length=8, seed=0, reference={"length": 8, "steps": 8}, cells=cells, skipped=("steps 3: odd",),
        execution="CPU reference", environment={"torch": "2"},
    )  # fmt: skip


def test_the_headline_is_the_worst_that_is_shown() -> None:
    noise, hurt = cell(4, 0.9, (-0.1, 0.9)), cell(2, 0.5, (0.1, 0.5), block=4)
    assert sweep(noise).headline == (
        "Within noise on the stand-in tiny-llada<script>: at no setting do fewer steps and quantization hurt each "
        "other, n = 16."
    )
    assert sweep(noise, hurt, standin=False).headline == (
        "Fewer steps and quantization hurt each other: most at steps 2, block 4, where 30.0 % more tokens change "
        "(95 %: 10.0 to 50.0 %), n = 16."
    )
    assert cell(2, 0.1, (-0.2, -0.05)).finding == "hide each other"
    assert list(sweep(noise, hurt).groups) == ["block 4", ""]


def test_what_is_written(tmp_path: Path) -> None:
    write_sweep(tmp_path, sweep(cell(4, 0.25, (-0.1, 0.2)), cell(8, 0.2, (-0.1, 0.1)), cell(2, 0.5, (0.1, 0.5))))
    page, content = (tmp_path / "sweep.html").read_text(), json.loads((tmp_path / "sweep.json").read_text())
    assert "<script" not in page
    assert page.count("<svg") == 1
    assert page.count('class="f-poor"') == 1  # the one that hurts
    assert page.count("hurt each other</td>") == 1
    assert "not run: steps 3: odd" in page
    assert [one["settings"]["steps"] for one in content["cells"]] == [4, 8, 2]
    assert content["headline"].startswith("Fewer steps and quantization hurt each other on the stand-in")
    rows = [line for line in (tmp_path / "sweep.md").read_text().splitlines() if line.startswith("| steps")]
    assert rows[2].startswith("| steps 2 | 2.0 | 10.0 % | 50.0 % | 20.0 % | +30.0 | hurt each other |")
    assert (tmp_path / "figures/steps-1.svg").is_file()


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (["--steps", "1,2"], "--steps takes shares above 0 and up to 1"),
        (["--steps", "x"], "--steps takes values with commas between them, not 'x'"),
        (["--block", "1.5"], "--block takes values"),
        (["--length", "0"], "--length is 0; it must be at least 1"),
        (["--limit", "0"], "--limit is 0"),
    ],
)
def test_usage(option: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sweep", str(tmp_path), *option]) == 2
    assert message in capsys.readouterr().err
