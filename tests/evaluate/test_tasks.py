"""Generated answers, their scores, and how two trajectories part."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from qspec.data import EXACT, TaskData, TaskItem
from qspec.errors import InputError
from qspec.evaluate import tasks
from qspec.evaluate.results import Speed
from qspec.evaluate.tasks import Clock, cut, denoise, measure_task
from qspec.evaluate.trajectories import NEVER
from qspec.models.sampler import SamplerSettings
from tests.evaluate.models import VOCAB, Characters, oracle

ANSWERS = {"1+1=": "2", "10+20=": "30", "what is a": "b c", "2+2=": "4"}


def task(answers: dict[str, str], stop: tuple[str, ...] = ()) -> TaskData:
    items = tuple(TaskItem(prompt, answer) for prompt, answer in answers.items())
    return TaskData("gsm8k", "arithmetic", (EXACT,), items, length=6, steps=6, block=6, stop=stop)


def test_the_text_ends_at_a_stop_string() -> None:
    assert cut("4\n\nQuestion: next", ("Question:", "\n\n")) == "4"
    assert cut("4", ()) == "4"


def test_exact_match_of_two_models() -> None:
    wrong = ANSWERS | {"2+2=": "5", "what is a": "d"}
    found = measure_task(oracle(ANSWERS), oracle(wrong), Characters(), task(ANSWERS), EXACT, seed=0)
    assert (found.metric.baseline, found.metric.quantized, found.metric.n) == (1.0, 0.5, 4)
    assert found.metric.drop_percent == 50.0
    assert (found.metric.metric, found.metric.task, found.metric.title) == (
        "exact_match",
        "gsm8k",
        "arithmetic",
    )
    # positions to the first end of text: 2 + 3 + 4 + 2; other tokens: one of 4, three of `b c`
    assert found.flips.positions == 11
    assert found.flips.token_flips == pytest.approx(4 / 11)
    assert found.flips.mean == 0


def test_samples_show_disagreements_first() -> None:
    wrong = ANSWERS | {"2+2=": "5"}
    found = measure_task(oracle(ANSWERS), oracle(wrong), Characters(), task(ANSWERS), EXACT, seed=0)
    assert [sample.prompt for sample in found.samples] == ["2+2=", "1+1=", "10+20=", "what is a"]
    first = found.samples[0]
    assert (first.reference, first.baseline, first.quantized) == ("4", "4", "5")
    assert (first.baseline_right, first.quantized_right) == (True, False)


def test_a_long_prompt_is_kept_from_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "PROMPT_KEPT", 4)
    model = oracle(ANSWERS)
    found = measure_task(model, model, Characters(), task({"10+20=": "30"}), EXACT, seed=0)
    assert found.samples[0].prompt == "…+20="


def test_the_answer_does_not_depend_on_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = [Characters().encode(prompt, add_special_tokens=False) for prompt in ANSWERS]
    settings = SamplerSettings(6, 3, 6)
    together = denoise(oracle(ANSWERS), prompts, settings)
    monkeypatch.setattr(tasks, "BATCH_TOKENS", 1)
    model = oracle(ANSWERS)
    alone = denoise(model, prompts, settings)
    assert len(model.seen) == 4 * 3
    assert torch.equal(together.tokens, alone.tokens)
    assert torch.equal(together.commit_step, alone.commit_step)
    # the surest positions first, two a step
    assert together.commit_step.tolist() == [[0, 0, 1, 1, 2, 2]] * 4


def test_commit_flips_of_opposite_orders() -> None:
    forwards = oracle({"1+1=": "23456"})
    backwards = oracle({"1+1=": "23456"}, backwards=True)
    found = measure_task(forwards, backwards, Characters(), task({"1+1=": "23456"}), EXACT, seed=0)
    assert found.metric.quantized == 1.0
    assert found.flips.mean == 1.0  # six positions, none committed at the same of six steps
    assert found.flips.token_flips == 0


def test_both_models_see_the_same_prompts_in_the_same_batches() -> None:
    one, other = oracle(ANSWERS), oracle(ANSWERS)
    measure_task(one, other, Characters(), task(ANSWERS), EXACT, seed=0)
    assert all(torch.equal(x, y) for x, y in zip(one.seen, other.seen, strict=True))


def test_lengths_that_do_not_divide_are_an_input_error() -> None:
    odd = TaskData("gsm8k", "arithmetic", (EXACT,), (TaskItem("1+1=", "2"),), length=6, steps=6, block=4)
    with pytest.raises(InputError) as caught:
        measure_task(oracle(ANSWERS), oracle(ANSWERS), Characters(), odd, EXACT, seed=0)
    assert "length 6 is not a multiple of block 4" in caught.value.what
    assert caught.value.where == "task gsm8k"


def test_a_stop_string_ends_the_text_that_is_scored() -> None:
    answers = {"1+1=": "2,x"}
    model = oracle(answers)
    data = TaskData("t", "t", (EXACT,), (TaskItem("1+1=", "2"),), 6, 6, 6, stop=(",",))
    assert measure_task(model, model, Characters(), data, EXACT, seed=0).metric.quantized == 1.0
    assert VOCAB.index(",") in model.seen[-1]


def test_nothing_is_computed_behind_the_block_in_which_a_text_ends() -> None:
    """Of two texts in blocks of two the first ends in the first block, the other in the second of three."""
    answers = {"1+1=": "2", "10+20=": "30"}
    short = replace(task(answers), block=2)
    settings, prompts = tasks.prepared(oracle(answers).shape, short, Characters(), seed=0)
    assert isinstance(settings, SamplerSettings)
    model, clock = oracle(answers), Clock()
    found = denoise(model, prompts, settings, clock=clock)
    assert [len(rows) for rows in model.seen] == [2, 2, 1, 1]
    assert [batch[:3] for batch in clock.batches] == [(2, 2 * 2, 2)]  # steps of both texts
    assert found.commit_step.tolist() == [[0, 1, NEVER, NEVER, NEVER, NEVER], [0, 1, 2, 3, NEVER, NEVER]]
    whole = denoise(oracle(answers), prompts, replace(settings, stop=False))
    assert torch.equal(found.tokens[0, :2], whole.tokens[0, :2])
    assert torch.equal(found.tokens[1, :4], whole.tokens[1, :4])
    compared = measure_task(oracle(answers), oracle(answers), Characters(), short, EXACT, seed=0)
    assert (compared.metric.quantized, compared.flips.positions, compared.flips.mean) == (1.0, 2 + 3, 0.0)


def test_the_speed_is_that_of_the_steps_of_each_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    clock.batches += [(4, 24, 6, 0.1), (2, 12, 6, 0.3)]
    assert clock.step == pytest.approx(200.0)
    assert clock.tokens_per_second == pytest.approx((24 + 12) / (6 * 0.1 + 6 * 0.3))
    ticks = iter([0.0, 9.0, 9.5, 10.0, 10.5, 11.0, 11.5, *(20.0 + n for n in range(7))])
    monkeypatch.setattr(tasks.time, "perf_counter", lambda: next(ticks))
    found = measure_task(oracle(ANSWERS), oracle(ANSWERS), Characters(), task(ANSWERS), EXACT, seed=0)
    # six steps of four texts: the first of the one model, which compiles, is not their median
    assert found.speed == Speed("gsm8k", 4.0, 500.0, 1000.0, 24 / 3.0, 24 / 6.0)
