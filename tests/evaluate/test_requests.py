"""What cannot be measured is known before any model is there: nothing here has one."""

from __future__ import annotations

from pathlib import Path

import pytest

from qspec.data import DataSources
from qspec.errors import InputError
from qspec.evaluate.requests import check_requests
from qspec.language.spec import Evaluation, FileText, NelboRequest, TaskRequest
from tests.evaluate.models import shape
from tests.hub_tasks import choice, piqa, put


class Bytes:
    """One token a byte."""

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        return list(text.encode())

    def decode(self, token_ids: list[int], *, skip_special_tokens: bool) -> str:
        return bytes(token_ids).decode()


def check(folder: Path, evaluation: Evaluation, longest: int = 64) -> None:
    sources = DataSources(None, folder, {"QSPEC_DATA": str(folder)})
    check_requests(evaluation, sources, Bytes(), shape(vocab=256, max_length=longest, mask=255))


def gsm8k(folder: Path, *questions: str) -> None:
    rows = [{"question": question, "answer": "#### 1"} for question in questions]
    put(folder, {"openai/gsm8k": {"main/test.jsonl": rows, "main/train.jsonl": rows}})


def test_a_prompt_with_what_is_generated_fits_the_model_to_the_token(tmp_path: Path) -> None:
    """A character is a token: "Question: aa", a new line and "Answer:" are 20, and 44 more make 64."""
    gsm8k(tmp_path, "a", "aa")
    check(tmp_path, Evaluation(tasks=(TaskRequest("gsm8k", shots=0, length=44, steps=44, block=44),)))
    with pytest.raises(InputError) as caught:
        check(tmp_path, Evaluation(tasks=(TaskRequest("gsm8k", shots=0, length=45, steps=45, block=45),)))
    assert caught.value.what == "prompt 2 of 2 has 20 tokens: with 45 to generate, more than the model's 64"
    assert (caught.value.where, caught.value.hint) == ("task gsm8k", "lower the task's `length` or `shots`")


def test_lengths_that_do_not_divide(tmp_path: Path) -> None:
    gsm8k(tmp_path, "a")
    with pytest.raises(InputError, match="block"):
        check(tmp_path, Evaluation(tasks=(TaskRequest("gsm8k", shots=0, length=10, steps=10, block=4),)))


def test_a_choice_that_is_longer_than_the_model(tmp_path: Path) -> None:
    rows = [piqa(choice("a", 0, ("b", "c" * 64)))]
    put(tmp_path, {"baber/piqa": {"piqa_train.jsonl": rows, "piqa_validation.jsonl": rows}})
    with pytest.raises(InputError, match="a choice has 65 tokens; the model takes 1 to 63"):
        check(tmp_path, Evaluation(tasks=(TaskRequest("piqa"),)))


def test_a_text_too_short_for_its_likelihood(tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("seven77")
    with pytest.raises(InputError, match="the text has 7 tokens, fewer than 8"):
        check(tmp_path, Evaluation(nelbo=(NelboRequest(FileText("short.txt")),)))
