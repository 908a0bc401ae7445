"""Models in lm-eval, and its tasks on models: scores beside those of a computation that shares no code with qspec's."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from qspec import runtime
from qspec.data import DataSources, TaskData
from qspec.evaluate.code import running_code
from qspec.evaluate.likelihood import measure_choices
from qspec.evaluate.measure import measure
from qspec.evaluate.tasks import measure_task
from qspec.language.presets import PRESETS
from qspec.language.spec import Evaluation, TaskRequest
from tests.hub_tasks import arc, choice, converted, made_up, piqa, put

ITEMS = 50
FEW = 12  # without `-m slow`
DRAWS = 3
REAL = os.environ.get("QSPEC_TEST_DATA")  # a folder with gsm8k, multiple-choice and humaneval, as published elsewhere


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """The models are so small that a second thread costs time."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def llada() -> tuple[Any, Any]:
    return runtime.load("tiny-llada", "cpu")


@pytest.fixture(scope="module")
def copies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = made_up(tmp_path_factory.mktemp("copies"))
    words = ("the", "moon", "of", "my", "king", "is", "red")
    made = [
        choice(f"What is the {words[n % 7]} number {n}?", n % 4, (f"a {words[n % 5]}", words[n % 3], f"{n}", "the sea"))
        for n in range(ITEMS)
    ]
    arcs = [arc(row) for row in made]
    pairs = [piqa(choice(row["question"], n % 2, tuple(row["choices"][:2]))) for n, row in enumerate(made)]
    sums = [{"question": f"{n} + {n % 7} = ?", "answer": f"#### {n + n % 7}"} for n in range(ITEMS)]
    return put(
        folder,
        {
            "allenai/ai2_arc": {
                f"ARC-Easy/{one}-00000-of-00001.parquet": arcs for one in ("train", "validation", "test")
            },
            "baber/piqa": {f"piqa_{one}.parquet": pairs for one in ("train", "validation")},
            "openai/gsm8k": {f"main/{one}-00000-of-00001.parquet": sums for one in ("train", "test")},
        },
    )


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not REAL:
        pytest.skip("QSPEC_TEST_DATA names no folder with data")
    return converted(Path(REAL), tmp_path_factory.mktemp("real"))


def load(folder: Path, name: str, limit: int = ITEMS, **settings: int) -> TaskData:
    found = DataSources(None, folder, {"QSPEC_DATA": str(folder)}).task(TaskRequest(name, limit=limit, **settings))
    assert isinstance(found, TaskData)
    return replace(found, draws=DRAWS)


# --- computed independently, from the formulas ---


def log_likelihood(model: Any, tokenizer: Any, context: str, target: str, seed: int) -> float:
    """Mean over draws of L'/l times the sum of log p at the l masked of L' targets (arXiv 2502.09992, eq. 6)."""
    before = tokenizer.encode(context, add_special_tokens=False)
    whole = tokenizer.encode(context + target, add_special_tokens=False)
    size = len(whole) - len(before)
    assert whole[: len(before)] == before
    generator = torch.Generator().manual_seed(zlib.crc32(f"{seed}/{context}/{target}".encode()))
    draws = DRAWS if size > 1 else 1
    first = int(torch.randint(1, size + 1, (), generator=generator))
    counts = [(first + int(b * size / draws + 0.5) - 1) % size + 1 for b in range(draws)]
    rows, masked = torch.tensor([whole] * draws), []
    for ids, count in zip(rows, counts, strict=True):
        masked.append(len(before) + torch.randperm(size, generator=generator)[:count])
        ids[masked[-1]] = model.shape.mask_token
    total = 0.0
    for logits, places in zip(model(rows).logits, masked, strict=True):
        p = torch.log_softmax(allowed(model, logits[places]).double(), -1)
        total += size / len(places) * float(p[torch.arange(len(places)), torch.tensor(whole)[places]].sum())
    return total / draws


def allowed(model: Any, logits: Tensor) -> Tensor:
    return logits if model.absent is None else logits.masked_fill(model.absent, -torch.inf)


def text_of(model: Any, tokenizer: Any, prompt: str, length: int, steps: int, block: int) -> str:
    """LLaDA's sampler at temperature 0: in each block, the surest predictions first, as many in every step."""
    start = tokenizer.encode(prompt, add_special_tokens=False)
    ids = torch.tensor([[*start, *[model.shape.mask_token] * length]])
    per_step = block * (length // block) // steps
    for number in range(length // block):
        low = len(start) + number * block
        for _ in range(steps // (length // block)):
            p = torch.softmax(allowed(model, model(ids).logits[0]).float(), -1)
            sure, best = p.max(-1)
            masked = ids[0] == model.shape.mask_token
            masked[:low] = False
            masked[low + block :] = False
            places = sure.masked_fill(~masked, -torch.inf).argsort(descending=True, stable=True)[:per_step]
            ids[0, places] = best[places]
    written = ids[0, len(start) :].tolist()
    ends = [place for place, token in enumerate(written) if token in model.shape.ends]
    return str(tokenizer.decode(written[: ends[0]] if ends else written, skip_special_tokens=True))


@torch.no_grad()
def check_choices(models: tuple[Any, Any], folder: Path, name: str, items: int) -> None:
    model, tokenizer = models
    task = load(folder, name, items)
    metric = measure_choices(model, model, tokenizer, task, task.scorings[0], seed=0)
    scores = [
        [log_likelihood(model, tokenizer, one.context, one.text, 0) for one in item.choices] for item in task.items
    ]
    right = [float(own.index(max(own)) == item.right) for own, item in zip(scores, task.items, strict=True)]
    lengths = [[len(one.text) - 1 for one in item.choices] for item in task.items]  # without the space before it
    by_length = [
        [score / size for score, size in zip(own, sizes, strict=True)]
        for own, sizes in zip(scores, lengths, strict=True)
    ]
    normed = [own.index(max(own)) == item.right for own, item in zip(by_length, task.items, strict=True)]
    assert len(task.items) == items
    assert metric.items == tuple((one, one) for one in right)
    assert metric.ids == tuple(item.id for item in task.items)
    assert metric.others == {"acc_norm": pytest.approx((sum(normed) / items, sum(normed) / items))}


@torch.no_grad()
def check_texts(models: tuple[Any, Any], folder: Path, items: int) -> None:
    model, tokenizer = models
    task = load(folder, "gsm8k", items, shots=0, length=8, steps=4, block=4)
    found = measure_task(model, model, tokenizer, task, task.scorings[0], seed=0)
    right = []
    for item in task.items:
        text = text_of(model, tokenizer, item.prompt, 8, 4, 4)
        for mark in task.stop:
            text = text.split(mark)[0]
        numbers = [one for one in re.findall(r"-?[$0-9.,]{2,}|-?[0-9]+", text) if one]
        last = numbers[-1].replace("$", "").replace(",", "").removesuffix(".") if numbers else None
        right.append(float(last == item.answer.split("#### ")[1].replace(",", "")))
    assert len(task.items) == items
    assert found.metric.items == tuple((one, one) for one in right)


MANY = [FEW, pytest.param(ITEMS, marks=pytest.mark.slow)]


@pytest.mark.parametrize("items", MANY)
@pytest.mark.parametrize("name", ["arc_easy", "piqa"])
def test_rated_choices_equal_an_independent_computation(
    llada: tuple[Any, Any], copies: Path, name: str, items: int
) -> None:
    check_choices(llada, copies, name, items)


@pytest.mark.parametrize("items", MANY)
def test_written_answers_equal_an_independent_computation(llada: tuple[Any, Any], copies: Path, items: int) -> None:
    check_texts(llada, copies, items)


@pytest.mark.slow
def test_published_rows_equal_an_independent_computation(llada: tuple[Any, Any], real: Path) -> None:
    check_choices(llada, real, "arc_easy", ITEMS)
    check_choices(llada, real, "piqa", ITEMS)
    check_texts(llada, real, ITEMS)


@pytest.mark.slow
def test_published_solutions_of_humaneval_are_right(real: Path) -> None:
    """All 164 by lm-eval's scoring through the sandbox, and none of them without its last line."""
    sources = DataSources(None, real, {"QSPEC_DATA": str(real)}, run_code=True)
    task = sources.task(TaskRequest("humaneval"))
    lines = (real / "openai/openai_humaneval/openai_humaneval/test.jsonl").read_text(encoding="utf-8").splitlines()
    solutions = [json.loads(line)["canonical_solution"] for line in lines]
    with running_code(allowed=True):
        right = task.scorings[0].score(task.items, solutions)
        wrong = task.scorings[0].score(task.items[:9], ["    return None\n"] * 9)
    assert [one["pass@1"] for one in right] == [1.0] * 164
    assert [one["pass@1"] for one in wrong] == [0.0] * 9


# --- all ten ---


@pytest.mark.parametrize("model", ["tiny-llada", "tiny-dream"])
def test_the_papers_tasks_run_on_both_stand_ins(copies: Path, model: str) -> None:
    """Offline, from copies in the hub's form."""
    names = [name for name in PRESETS if name != "openbookqa"]
    loaded, tokenizer = runtime.load(model, "cpu")
    requests = tuple(TaskRequest(name, shots=0, length=4, steps=2, block=4, limit=1) for name in names)
    sources = FewDraws(None, copies, {"QSPEC_DATA": str(copies)}, run_code=True)
    found = measure(loaded, loaded, tokenizer, Evaluation(tasks=requests), sources, 0)
    assert [metric.task for metric in found.metrics] == names
    assert all(metric.n == 1 and len(metric.ids) == 1 for metric in found.metrics)
    assert all(first == second for metric in found.metrics for first, second in metric.items)
    assert found.not_measured == ()
    assert "limits" in found.isolation


class FewDraws(DataSources):
    def task(self, request: TaskRequest) -> Any:
        return replace(super().task(request), draws=2)


# --- the model of lm-eval ---


def request(*arguments: Any, task: str = "t", doc: int = 0) -> Any:
    return SimpleNamespace(args=arguments, task_name=task, doc_id=doc)


@pytest.fixture(scope="module")
def lm() -> Any:
    from qspec.evaluate.lm import DiffusionLM

    return DiffusionLM("tiny-llada", "cpu", 8, 4, 4, DRAWS)


@torch.no_grad()
def test_likelihoods_in_lm_eval(lm: Any, llada: tuple[Any, Any]) -> None:
    pairs = [("Question: a\nAnswer:", " the moon"), ("", "the king"), ("x", " y")]
    found = lm.loglikelihood([request(*pair, doc=doc) for doc, pair in enumerate(pairs)])
    assert [score for score, _ in found] == pytest.approx(
        [log_likelihood(*llada, *pair, 0) for pair in pairs], rel=1e-4
    )
    again = lm.loglikelihood([request(*pair) for pair in reversed(pairs)])
    assert [score for score, _ in reversed(again)] == pytest.approx([score for score, _ in found], rel=1e-6)
    assert not any(greedy for _, greedy in again)  # one of several about a document


def test_what_the_sampler_writes_is_greedy(lm: Any) -> None:
    """Of prompts whose three tokens are text that the tokenizer splits alike, the continuation is greedy."""
    options, found = {"until": [], "length": 3, "steps": 3, "block": 3}, 0
    for prompt in ("The moon", "1+1=", "Question:", "my king", "a"):
        (text,) = lm.generate_until([request(prompt, options)])
        start, whole = (lm.tokenizer.encode(one, add_special_tokens=False) for one in (prompt, prompt + text))
        if len(whole) == len(start) + 3 and whole[: len(start)] == start:
            found += 1
            assert lm.loglikelihood([request(prompt, text)])[0][1]
        assert not lm.loglikelihood([request(prompt, f"{text} zz")])[0][1]
    assert found


def test_texts_in_lm_eval(lm: Any, llada: tuple[Any, Any]) -> None:
    prompts = ["Question: 1 + 1 = ?\nAnswer:", "The moon"]
    with torch.no_grad():
        expected = [text_of(*llada, prompt, 8, 4, 4) for prompt in prompts]
    assert lm.generate_until([request(prompt, {"until": []}) for prompt in prompts]) == expected
    letter = next(one for one in expected[0] if one.strip())
    (cut,) = lm.generate_until([request(prompts[0], {"until": [letter]})])
    assert cut == expected[0].split(letter)[0]


def test_a_whole_text_in_lm_eval(lm: Any) -> None:
    whole, parts = "the moon of my king", lm.model.shape.max_length
    (score,) = lm.loglikelihood_rolling([request(whole)])
    assert score < 0
    long = "the moon " * parts
    (score,) = lm.loglikelihood_rolling([request(long)])
    assert score < 0


@pytest.mark.slow  # lm-eval's command parses all of its 14,000 files
def test_lm_evals_command_knows_the_model(copies: Path, tmp_path: Path) -> None:
    """Without the network, on copies of the data; the scores of its items are ours."""
    options = ["--model", "qspec", "--device", "cpu", "--model_args", "path=tiny-llada,length=4,block=4,draws=2"]
    command = [sys.executable, "-m", "qspec.lm_eval", *options, "--tasks", "arc_easy,gsm8k", "--limit", "2"]
    environment = {**os.environ, "QSPEC_DATA": str(copies), "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf")}
    done = subprocess.run(
        [*command, "--num_fewshot", "0", "--output_path", str(tmp_path / "out"), "--log_samples"],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (results,) = (tmp_path / "out").rglob("results_*.json")
    content = json.loads(results.read_text())["results"]
    assert set(content) == {"arc_easy", "gsm8k"}
    (samples,) = (tmp_path / "out").rglob("samples_arc_easy_*.jsonl")
    rows = [json.loads(line) for line in samples.read_text().splitlines()]
    model, tokenizer = runtime.load("tiny-llada", "cpu")
    task = replace(load(copies, "arc_easy", shots=0), draws=2)
    task = replace(task, items=task.items[:2])
    metric = measure_choices(model, model, tokenizer, task, task.scorings[0], seed=0)
    assert [row["acc"] for row in rows] == [first for first, _ in metric.items]
