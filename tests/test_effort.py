"""How long an evaluation takes: tokens by hand, the prediction beside what was measured, and what is said of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from qspec import effort as module
from qspec.bench.evaluation_data import BF16, read
from qspec.cli import main
from qspec.data import TaskData
from qspec.data.items import CHOICES, EXACT, Choice, TaskItem
from qspec.effort import SIZES, advice, duration, effort, task_tokens, this_gpu
from qspec.evaluate.requests import task_size, tell_effort
from qspec.language.spec import Evaluation, NamedText, NelboRequest, TaskRequest
from qspec.planned import plan
from qspec.progress import Quiet
from tests.evaluate.models import Characters

ROOT = Path(__file__).parent.parent
PAPER = ROOT / "recipes" / "paper"
H200 = "NVIDIA H200"


@pytest.mark.parametrize(
    ("request_", "tokens"),
    [
        (TaskRequest("gsm8k", shots=4), 1319 * 256 * (107 + 4 * 152.5 + 256)),
        (TaskRequest("gsm8k", shots=0, length=64, steps=32, limit=10), 10 * 32 * (107 + 64)),
        (TaskRequest("piqa"), 1838 * 2 * 128 * (13 + 23.6)),
        (TaskRequest("piqa", limit=5000), 1838 * 2 * 128 * (13 + 23.6)),
        (TaskRequest("mmlu", shots=5), 14042 * (120 + 5 * 113.5 + 1)),
    ],
)
def test_tokens_by_hand(request_: TaskRequest, tokens: float) -> None:
    assert task_tokens(request_, SIZES[request_.name]) == pytest.approx(tokens)


def test_both_models_and_what_is_not_known() -> None:
    wanted = Evaluation((NelboRequest(NamedText("wikitext2"), 64),), (TaskRequest("piqa"), TaskRequest("boolq")))
    found = effort(plan(PAPER / "rtn_w4a4.qs", "GSAI-ML/LLaDA-8B-Base"), wanted, gpu=H200)
    assert found.tokens == {"nelbo on wikitext2": 64 * 4 * 1024, "piqa": pytest.approx(1838 * 2 * 128 * 36.6)}
    assert found.unknown == ("boolq",)
    assert found.seconds == pytest.approx(sum(found.tokens.values()) * (found.baseline + found.quantized))
    assert 1.7 < found.baseline / found.quantized < 2.2
    assert str(found).startswith(f"about {duration(found.seconds)} on NVIDIA H200 (unquantized ")
    assert str(found).endswith(" GiB of GPU memory; without boolq")


def test_the_prediction_is_near_what_was_measured() -> None:
    """Within a third: rotations of the input and logits of choices are not weighed for themselves."""
    run = read([ROOT / "docs" / "performance" / "evaluate.json"])
    assert run.environment["gpu"] == H200
    for recipe in ("rtn_w4a4", "duquant_w4a4"):
        planned = plan(PAPER / f"{recipe}.qs", "GSAI-ML/LLaDA-8B-Instruct")
        found = effort(planned, Evaluation(), gpu=H200)
        for cell in run.cells:
            if cell.recipe in (BF16, recipe):
                rate = found.baseline if cell.recipe == BF16 else found.quantized
                assert 1 / rate == pytest.approx(cell.through_per_second, rel=0.34), cell
                assert cell.peak < cell.planned < 1.15 * cell.peak
            if cell.recipe == recipe:
                assert found.memory == pytest.approx(cell.peak, rel=0.2)


def test_advice_for_hours_alone() -> None:
    planned = plan(PAPER / "rtn_w4a4.qs", "GSAI-ML/LLaDA-8B-Base")
    long, short = Evaluation((), (TaskRequest("math", shots=4),)), Evaluation((), (TaskRequest("piqa", limit=50),))
    assert advice(planned, short, effort(planned, short, gpu=H200)) is None
    said = advice(planned, long, effort(planned, long, gpu=H200))
    assert said is not None
    assert said.startswith("evaluation takes hours: --limit 200 measures a part in about ")
    endless = Evaluation((), (TaskRequest("math", length=4096, steps=4096, shots=4),))
    assert "--quick measures" in str(advice(planned, endless, effort(planned, endless, gpu=H200)))


def test_durations() -> None:
    assert [duration(s) for s in (42.4, 89.4, 120, 5399, 5400, 36_000)] == [
        "42 s", "89 s", "2 min", "90 min", "1.5 h", "10.0 h",
    ]  # fmt: skip


def test_the_gpu_of_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "DRIVER", tmp_path)
    assert this_gpu() is None
    (tmp_path / "0000:01:00.0").mkdir()
    (tmp_path / "0000:01:00.0" / "information").write_text("Model: \t\t NVIDIA H200\nIRQ:  \t 17\n")
    assert this_gpu() == H200


def test_tokens_of_a_task_are_counted() -> None:
    written = TaskData("t", "t", (EXACT,), (TaskItem("abc", ""), TaskItem("abcde", "")), 8, 8, 8)
    assert (task_size(written, Characters(), 30).items, task_size(written, Characters(), 30).prompt) == (2, 4.0)
    item = TaskItem("", "", (Choice("ab", "c"), Choice("ab", "cde")))
    size = task_size(TaskData("t", "t", (CHOICES,), (item,) * 3, 8, 8, 8), Characters(), 30)
    assert (size.items, size.choices, size.prompt, size.target) == (3, 2, 2.0, 2.0)


def test_hours_are_told_before_they_begin(monkeypatch: pytest.MonkeyPatch) -> None:
    class Sources:
        def task(self, request: TaskRequest) -> TaskData:
            return TaskData(request.name, "t", (EXACT,), (TaskItem("abcde" * 100, ""),) * 1000, 256, 256, 32)

    class Noted(Quiet):
        def note(self, text: str) -> None:
            told.append(text)

    told: list[str] = []
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: H200)
    planned = plan(PAPER / "rtn_w4a4.qs", "GSAI-ML/LLaDA-8B-Base")
    given: Any = (Sources(), Characters())
    hours, minutes = (Evaluation((), (TaskRequest("gsm8k", limit=limit),)) for limit in (None, 16))
    for device, wanted in (("cpu", hours), ("cuda", minutes), ("cuda", hours)):
        tell_effort(planned, wanted, *given, torch.device(device), Noted())
    assert len(told) == 2
    assert told[0].startswith("measuring takes about ")
    assert "--limit 200" in told[1]


def test_what_the_plan_says_of_evaluating(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(PAPER / "rtn_w4a4.qs"), "--model", "tiny-llada"]) == 0
    assert "evaluate needs" not in capsys.readouterr().out
    assert main(["plan", str(PAPER / "rtn_w4a4.qs")]) == 0
    shown = capsys.readouterr().out
    assert "  evaluate needs   about " in shown
    assert "evaluation takes hours: --limit " in shown
    assert main(["plan", str(PAPER / "rtn_w4a4.qs"), "--limit", "8", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)["evaluate"]
    assert (data["parts"][0]["name"], data["parts"][0]["tokens"]) == ("nelbo on wikitext2", 8 * 4 * 1024)
    assert data["seconds"] == pytest.approx(sum(part["seconds"] for part in data["parts"]), abs=1)
