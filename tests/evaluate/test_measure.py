"""One whole evaluation of two models that are known in closed form."""

from __future__ import annotations

import dataclasses
import json
import math
import types
from pathlib import Path

import pytest

import qspec
from qspec.data import DataSources
from qspec.evaluate.measure import measure
from qspec.language.spec import Evaluation, FileText, NamedText, NelboRequest, TaskRequest
from qspec.progress import Quiet
from tests.evaluate.models import SIZE, Characters, oracle, uniform

ANSWERS = {"1+1=": "2", "2+1=": "3", "red ": "a", "blue ": "b"}


@pytest.fixture
def standin(tmp_path: Path) -> Path:
    lengths = {"length": 4, "steps": 4, "block": 4}
    description = {
        "name": "tiny-llada",
        "texts": {"calibration": "text.jsonl", "heldout": "text.jsonl"},
        "tasks": {
            "gsm8k": {"title": "arithmetic", "file": "sums.jsonl", **lengths},
            "mmlu": {"title": "recall", "file": "recall.jsonl", **lengths},
        },
    }
    (tmp_path / "standin.json").write_text(json.dumps(description))
    files = {
        "text.jsonl": [{"text": "some text to measure, "}, {"text": "and a little more of it"}],
        "sums.jsonl": [{"prompt": p, "answer": ANSWERS[p]} for p in ("1+1=", "2+1=")],
        "recall.jsonl": [{"prompt": p, "answer": ANSWERS[p], "choices": ["a", "b"]} for p in ("red ", "blue ")],
    }
    for name, rows in files.items():
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


REQUEST = Evaluation(
    nelbo=(NelboRequest(NamedText("wikitext2"), 8),),
    tasks=(TaskRequest("mmlu"), TaskRequest("gsm8k"), TaskRequest("humaneval")),
)


def test_everything_that_was_asked_for(standin: Path) -> None:
    sources = DataSources(standin, standin, {})
    progress = Parts()
    good, bad = oracle(ANSWERS), oracle(ANSWERS | {"2+1=": "2", "blue ": "a"})
    found = measure(good, bad, Characters(), REQUEST, sources, 3, progress)
    assert [(metric.task, metric.metric) for metric in found.metrics] == [
        ("wikitext2", "nelbo"),
        ("mmlu", "exact_match"),
        ("mmlu", "choice_accuracy"),
        ("gsm8k", "exact_match"),
    ]
    assert [(metric.label, metric.chance) for metric in found.metrics] == [
        ("stand-in text (for wikitext2)", 0.0),
        ("stand-in recall (for mmlu)", 0.0),
        ("stand-in recall (for mmlu)", 0.5),  # two choices
        ("stand-in arithmetic (for gsm8k)", 0.0),
    ]
    assert [(metric.baseline, metric.quantized) for metric in found.metrics[1:]] == [(1.0, 0.5)] * 3
    assert found.metrics[0].baseline == pytest.approx(math.log(SIZE), rel=1e-6)  # the oracle knows no plain text
    assert [flips.task for flips in found.flips] == ["mmlu", "gsm8k"]
    assert {sample.task for sample in found.samples} == {"mmlu", "gsm8k"}
    assert found.not_measured == ("not measured: humaneval: tiny-llada has no task of its own in its place",)
    assert len(found.replacements) == 3
    assert found.seed == 3
    assert list(found.timings) == [
        "nelbo on stand-in text (for wikitext2)",
        "stand-in recall (for mmlu)",
        "stand-in recall (for mmlu), choices",
        "stand-in arithmetic (for gsm8k)",
    ]
    assert ("stand-in arithmetic (for gsm8k)", 4, 4) in progress.parts


def test_the_result_is_plain_json(standin: Path) -> None:
    model = oracle(ANSWERS)
    found = measure(model, model, Characters(), REQUEST, DataSources(standin, standin, {}), 0)
    plain = json.loads(json.dumps(found.as_json(), allow_nan=False))
    assert plain["metrics"][3]["task"] == "gsm8k"
    assert set(plain) == {field.name for field in dataclasses.fields(found)}


def test_nothing_asked_nothing_measured(standin: Path) -> None:
    found = measure(uniform(), uniform(), Characters(), Evaluation(), DataSources(standin, standin, {}), 0)
    assert found.metrics == found.not_measured == ()


def test_text_names() -> None:
    assert NamedText("wikitext2").name == "wikitext2"
    assert FileText("my/x.jsonl", "text").name == "my/x.jsonl"


def test_the_public_function_and_its_package_share_a_name() -> None:
    import qspec.evaluate as package

    assert isinstance(package, types.ModuleType)
    assert callable(qspec.evaluate)
    with pytest.raises(qspec.errors.InputError, match="not a qspec artifact"):
        qspec.evaluate("no/such/artifact")


class Parts(Quiet):
    def __init__(self) -> None:
        super().__init__()
        self.parts: list[tuple[str, int, int]] = []

    def part(self, title: str, done: int, total: int) -> None:
        self.parts.append((title, done, total))
