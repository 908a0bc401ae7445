"""Texts and tasks: which file answers a name, and what a bad file says."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from qspec.data import (
    CHOICES,
    EXACT,
    Choice,
    DataSources,
    TaskData,
    TaskItem,
    read_documents,
    read_rows,
    spread,
)
from qspec.errors import InputError
from qspec.language.spec import Calibration, Evaluation, FileText, NamedText, NelboRequest, TaskRequest


def write(path: Path, *lines: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(line + "\n" for line in lines))
    return path


def rows(*objects: object) -> list[str]:
    return [json.dumps(one) for one in objects]


@pytest.fixture
def standin(tmp_path: Path) -> Path:
    folder = tmp_path / "tiny-llada"
    task = {"length": 40, "steps": 20, "block": 10}
    description = {
        "name": "tiny-llada",
        "family": "llada",
        "texts": {"calibration": "data/c.jsonl", "heldout": "data/h.jsonl"},
        "tasks": {
            "mmlu": {"title": "recall", "file": "data/recall.jsonl", "length": 8, "steps": 8, "block": 8},
            "gsm8k": {"title": "arithmetic", "file": "data/sums.jsonl", **task},
        },
    }
    write(folder / "standin.json", json.dumps(description))
    write(folder / "data/c.jsonl", *rows({"text": "to calibrate"}, {"text": "more"}))
    write(folder / "data/h.jsonl", *rows({"text": "held out"}))
    sums = ({"prompt": f"{i}+1=", "answer": f"{i + 1}"} for i in range(100))
    write(folder / "data/sums.jsonl", *rows(*sums))
    recall = {"prompt": "capital? ", "answer": "b", "choices": ["a", "b", "c"]}
    write(folder / "data/recall.jsonl", *rows(recall))
    return folder


def test_the_standin_answers_every_name_and_says_so(standin: Path) -> None:
    sources = DataSources(standin, standin, {})
    assert sources.calibration(NamedText("wikitext2")).documents == ("to calibrate", "more")
    assert sources.heldout(NamedText("wikitext2")).documents == ("held out",)
    task = sources.task(TaskRequest("gsm8k", length=256, steps=256, block=32))
    assert isinstance(task, TaskData)
    assert (task.length, task.steps, task.block) == (40, 20, 10)
    assert (task.source, sources.heldout(NamedText("wikitext2")).source) == ("stand-in arithmetic", "stand-in text")
    assert len(task.items) == 48
    sources.task(TaskRequest("gsm8k"))
    assert sources.replacements == [
        "text wikitext2: tiny-llada's own calibration text",
        "text wikitext2: tiny-llada's own held-out text",
        'task gsm8k: tiny-llada\'s own "arithmetic" (length 40, steps 20, block 10)',
    ]


def test_a_limit_is_spread_over_the_standins_file(standin: Path) -> None:
    task = DataSources(standin, standin, {}).task(TaskRequest("gsm8k", limit=4))
    assert isinstance(task, TaskData)
    assert [item.answer for item in task.items] == ["1", "26", "51", "76"]


def test_a_standins_choices_are_rated_beside_the_exact_match(standin: Path) -> None:
    sources = DataSources(standin, standin, {})
    recall, sums = (sources.task(TaskRequest(name)) for name in ("mmlu", "gsm8k"))
    assert isinstance(recall, TaskData)
    assert isinstance(sums, TaskData)
    assert recall.scorings == (EXACT, CHOICES)
    assert sums.scorings == (EXACT,)
    assert (recall.items[0].id, sums.items[1].id) == ("recall/1", "sums/3")
    assert recall.items[0].right == 1
    assert [choice.text for choice in recall.items[0].choices] == ["a", "b", "c"]


def test_a_choice_follows_its_prompt_after_a_space(standin: Path) -> None:
    recall = {"prompt": "capital?", "answer": "b", "choices": ["a", "b"]}
    write(standin / "data/recall.jsonl", *rows(recall))
    task = DataSources(standin, standin, {}).task(TaskRequest("mmlu"))
    assert isinstance(task, TaskData)
    assert [choice.context + choice.text for choice in task.items[0].choices] == ["capital? a", "capital? b"]


class Brackets:
    """A chat template."""

    def __init__(self, *settings: str) -> None:
        self.settings = settings

    def __call__(self, messages: object, where: str) -> str:
        raise AssertionError("a task has prompts")

    def used(self, setting: str) -> bool:
        return setting in self.settings

    def prompt(self, text: str) -> str:
        return f"[{text}]"


def test_prompts_and_the_contexts_of_choices_are_asked_in_chat_where_the_template_is_used(standin: Path) -> None:
    recall = {"prompt": "capital?", "answer": "b", "choices": ["a", "b"]}
    write(standin / "data/recall.jsonl", *rows(recall))
    sources = DataSources(standin, standin, {}, chat=Brackets("auto"))
    task, plain = (sources.task(TaskRequest("mmlu", chat=chat)) for chat in ("auto", "off"))
    assert isinstance(task, TaskData)
    assert isinstance(plain, TaskData)
    assert task.items[0].prompt == "[capital?]"
    assert [(one.context, one.text) for one in task.items[0].choices] == [("[capital?]", " a"), ("[capital?]", " b")]
    assert (plain.items[0].prompt, plain.items[0].choices[0].context) == ("capital?", "capital?")
    assert (task.title, plain.title) == ("recall (tiny-llada), asked in chat", "recall (tiny-llada)")
    assert task.items[0].right == plain.items[0].right == 1


def test_a_task_that_the_standin_lacks_is_listed(standin: Path) -> None:
    missing = DataSources(standin, standin, {}).task(TaskRequest("humaneval"))
    assert str(missing) == "not measured: humaneval: tiny-llada has no task of its own in its place"


def test_unknown_names_suggest_the_nearest(standin: Path) -> None:
    for sources in (DataSources(standin, standin, {}), DataSources(None, standin, {})):
        with pytest.raises(InputError) as text:
            sources.heldout(NamedText("wikitxt2"))
        assert (text.value.what, text.value.hint) == ('unknown text "wikitxt2"', 'did you mean "wikitext2"?')


def test_check_reads_everything_that_a_recipe_names(standin: Path, tmp_path: Path) -> None:
    sources = DataSources(standin, tmp_path, {})
    calibrate = Calibration(text=NamedText("wikitext2"))
    sources.check(calibrate, Evaluation((NelboRequest(),), (TaskRequest("gsm8k"), TaskRequest("mmlu"))))
    assert len(sources.replacements) == 4
    with pytest.raises(InputError, match=r"data that are not on this machine:\n  .*gone\.txt"):
        sources.check(calibrate, Evaluation((NelboRequest(FileText("gone.txt")),)))


def test_files_are_relative_to_the_recipe(tmp_path: Path) -> None:
    write(tmp_path / "my" / "text.txt", "one", "two")
    lines = rows({"body": "first"}, {"body": "  "}, {"body": "second"})
    write(tmp_path / "my" / "rows.jsonl", *lines[:2], "", lines[2])
    sources = DataSources(None, tmp_path, {})
    assert sources.calibration(FileText("my/text.txt")).documents == ("one\ntwo\n",)
    assert sources.heldout(FileText("my/rows.jsonl", "body")).documents == ("first", "second")
    assert sources.heldout(FileText("my/rows.jsonl", "body")).title == 'file "my/rows.jsonl"'


BAD_ROWS = {
    "not JSON": ('{"text": oops}', "not valid JSON: Expecting value"),
    "cut": ('{"text": "a', "not valid JSON: Unterminated string"),
    "list": ('["a"]', "a line must hold one JSON object"),
    "other field": ('{"body": "a"}', 'no field "text"'),
    "number": ('{"text": 3}', 'field "text" must be text, not int'),
    "surrogate": ('{"text": "\\ud800"}', 'field "text" is not valid Unicode'),
    "deep": ("[" * 100_000, "nested too deeply"),
    "digits": ('{"text": ' + "9" * 5000 + "}", "a number too long"),
}


@pytest.mark.parametrize("name", BAD_ROWS)
def test_a_bad_row_names_file_and_line(tmp_path: Path, name: str) -> None:
    line, message = BAD_ROWS[name]
    path = write(tmp_path / "x.jsonl", '{"text": "fine"}', "", line)
    with pytest.raises(InputError) as caught:
        read_documents(path, "text")
    assert message in caught.value.what
    assert caught.value.where == f"{path}:3"


def test_a_missing_field_lists_those_that_are_there(tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl", '{"body": "a", "id": 1}')
    with pytest.raises(InputError) as caught:
        read_documents(path, "text")
    assert caught.value.hint == 'the line has "body", "id"'


def test_binary_and_foreign_encodings_name_the_line(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    for content, message in ((b"fine\n\x00\x01", "binary data"), (b"fine\n\xff\xfe", "not UTF-8 text")):
        path.write_bytes(content)
        with pytest.raises(InputError) as caught:
            read_documents(path)
        assert message in caught.value.what
        assert caught.value.where == f"{path}:2"


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"text": "a"}\n')
    assert list(read_rows(path)) == [(1, {"text": "a"})]


@pytest.mark.parametrize("content", ["", " \n\n\t\n"])
def test_an_empty_file(tmp_path: Path, content: str) -> None:
    path = write(tmp_path / "x.txt", content)
    with pytest.raises(InputError, match="empty"):
        read_documents(path)
    with pytest.raises(InputError, match="empty"):
        read_documents(path, "text")


def test_a_folder_and_a_missing_file(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "gone.txt"):
        with pytest.raises(InputError) as caught:
            read_documents(path)
        assert caught.value.where == str(path)


@pytest.mark.parametrize(
    ("file", "line", "message"),
    [
        ("recall.jsonl", '{"prompt": "p", "answer": "z", "choices": ["a", "b"]}', "not among the choices"),
        ("recall.jsonl", '{"prompt": "p", "answer": "a", "choices": ["a"]}', "at least two texts"),
        ("recall.jsonl", '{"prompt": "p"}', 'no field "answer"'),
    ],
)
def test_a_bad_standin_row(standin: Path, file: str, line: str, message: str) -> None:
    path = write(standin / "data" / file, line)
    with pytest.raises(InputError) as caught:
        DataSources(standin, standin, {}).task(TaskRequest("mmlu"))
    assert message in caught.value.what
    assert caught.value.where == f"{path}:1"


def test_an_empty_task_file(standin: Path) -> None:
    write(standin / "data/recall.jsonl")
    with pytest.raises(InputError, match="the task file is empty"):
        DataSources(standin, standin, {}).task(TaskRequest("mmlu"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"texts": {"calibration": "a"}}, "lacks 'heldout'"),
        ({"name": 3}, '"name" must be text'),
        ({"tasks": {"mmlu": {"title": "t", "file": "f", "length": 0, "steps": 8, "block": 8}}}, "positive"),
        ({"tasks": 3}, "not understood"),
    ],
)
def test_a_damaged_description(standin: Path, change: dict[str, object], message: str) -> None:
    path = standin / "standin.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(InputError) as caught:
        DataSources(standin, standin, {})
    assert message in caught.value.what
    assert caught.value.where == str(path)


def test_a_description_cannot_point_out_of_its_folder(standin: Path) -> None:
    path = standin / "standin.json"
    path.write_text(path.read_text().replace("data/c.jsonl", "../secret.jsonl"))
    with pytest.raises(InputError, match="points out of the checkpoint's folder"):
        DataSources(standin, standin, {}).calibration(NamedText("wikitext2"))


def test_spread() -> None:
    assert spread("abcdefghij", 3) == ("a", "d", "g")
    assert spread("abc", 3) == spread("abc", 9) == spread("abc", None) == ("a", "b", "c")


def test_no_torch() -> None:
    code = "import sys, qspec.data; print('torch' in sys.modules, 'numpy' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout == "False False\n"


# --- files of messages ---


def spoken(messages: Sequence[Mapping[str, Any]], where: str) -> str:
    assert where.endswith(("1", "2", "3"))
    return "".join(f"<{one['role']}>{one['content']}" for one in messages)


def test_messages_are_read_through_the_chat_template(tmp_path: Path) -> None:
    talk = [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}]
    path = write(tmp_path / "chat.jsonl", *rows({"messages": talk}, {"messages": []}, {"messages": "plain"}))
    assert read_documents(path, "messages", spoken) == ("<user>2+2?<assistant>4", "plain")


@pytest.mark.parametrize("message", [{"role": "user"}, {"role": "user", "content": None}, "hello", {"content": "x"}])
def test_messages_have_a_role_and_a_text(tmp_path: Path, message: object) -> None:
    path = write(tmp_path / "chat.jsonl", *rows({"messages": [{"role": "user", "content": "a"}, message]}))
    with pytest.raises(InputError, match='must be a list of messages, each with a "role" and a "content" of text') as e:
        read_documents(path, "messages", spoken)
    assert e.value.where == f"{path}:1"


# --- scores ---


def test_a_text_is_exact_but_for_the_space_around_it() -> None:
    items = [TaskItem("p", answer) for answer in ("42", "42", " 42\n", "42")]
    found = EXACT.score(items, [" 42 \n", "42.", "42", "4 2"])
    assert [one["exact_match"] for one in found] == [1, 0, 1, 0]


def test_the_likeliest_choice_is_the_first_of_equals() -> None:
    choices = tuple(Choice("p", text) for text in "abc")
    items = [TaskItem("p", "b", choices, right) for right in (1, 1, 2)]
    found = CHOICES.score(items, [[-3.0, -1.0, -2.0], [-1.0, -1.0, -2.0], [-9.0, -8.0, -7.0]])
    assert [one["choice_accuracy"] for one in found] == [1, 0, 1]
