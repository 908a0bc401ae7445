"""lm-eval's tasks on copies of the hub's data sets: prompts and scores, and what is said where something is missing."""

from __future__ import annotations

import hashlib
import re
import sys
from pathlib import Path

import pytest

from qspec.data import DataPin, DataSources, NotMeasured, TaskData, harness
from qspec.data.harness import CODE, FEWSHOT_SEED, leaves
from qspec.errors import InputError
from qspec.evaluate.code import running_code
from qspec.language.presets import PRESETS
from qspec.language.spec import Calibration, Evaluation, FileText, TaskRequest
from tests.hub_data import texts, write
from tests.hub_tasks import arc, choice, made_up, put


@pytest.fixture(scope="module")
def copies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_up(tmp_path_factory.mktemp("copies"))


def load(copies: Path, name: str, shots: int | None = None, limit: int | None = None) -> TaskData:
    found = DataSources(None, copies, {"QSPEC_DATA": str(copies)}, run_code=True).task(
        TaskRequest(name, shots=shots, limit=limit)
    )
    assert isinstance(found, TaskData)
    return found


def test_gsm8k_prompts_and_references(copies: Path) -> None:
    task = load(copies, "gsm8k", shots=0)
    assert [item.prompt for item in task.items[:2]] == [
        "Question: What is 0 and 0?\nAnswer:",
        "Question: What is 1 and 1?\nAnswer:",
    ]
    assert task.items[1].answer == "1 + 1 = 2\n#### 2"
    assert [item.id for item in task.items] == [f"gsm8k/{number}" for number in range(8)]
    assert task.stop == ("Question:", "</s>", "<|im_end|>")
    assert (task.title, task.revision, task.runs_code) == ("GSM8K", "local copy", False)


def test_mmlu_prompts(copies: Path) -> None:
    task = load(copies, "mmlu", shots=5, limit=1)
    asked = "".join(
        f"Which colour is number {number}?\nA. red\nB. green\nC. blue\nD. grey\nAnswer: {'ABCD'[number % 4]}\n\n"
        for number in range(5)
    )
    head = "The following are multiple choice questions (with answers) about abstract algebra.\n\n"
    question = "Which colour is number 5?\nA. red\nB. green\nC. blue\nD. grey\nAnswer:"
    (item,) = task.items
    assert item.prompt == head + asked + question
    assert [one.text for one in item.choices] == [" A", " B", " C", " D"]
    assert (item.right, item.answer, item.id, task.draws) == (1, " B", "mmlu_abstract_algebra/0", 1)
    assert len(leaves("mmlu")) == 57


def test_winogrande_rates_the_rest_of_the_sentence(copies: Path) -> None:
    item = load(copies, "winogrande", shots=0).items[1]
    assert [(one.context, one.text) for one in item.choices] == [
        ("Ann saw Bo because Ann", " was 1 miles away."),
        ("Ann saw Bo because Bo", " was 1 miles away."),
    ]
    assert (item.right, item.prompt) == (1, "Ann saw Bo because Bo")


def test_hellaswag_and_piqa_prompts(copies: Path) -> None:
    ended = load(copies, "hellaswag").items[3]
    assert ended.prompt == "Counting: He counts to 3. The next is"
    assert [one.text for one in ended.choices] == [" one.", " two.", " three.", " four."]
    goal = load(copies, "piqa").items[0]
    assert (goal.prompt, goal.answer) == ("Question: How to count to 0?\nAnswer:", " slowly")


def test_a_limit_changes_no_prompt_and_prompts_are_lm_evals_own(copies: Path) -> None:
    import lm_eval.tasks
    from lm_eval.tasks import TaskManager

    whole, part = load(copies, "gsm8k", shots=4), load(copies, "gsm8k", shots=4, limit=3)
    assert [item.id for item in part.items] == ["gsm8k/0", "gsm8k/2", "gsm8k/5"]
    assert [item.prompt for item in part.items] == [whole.items[place].prompt for place in (0, 2, 5)]
    assert whole.items[0].prompt.count("Question:") == 5
    folder = Path(lm_eval.tasks.__file__).parent / "gsm8k"
    files = {split: str(copies / f"openai/gsm8k/main/{split}-00000-of-00001.parquet") for split in ("train", "test")}
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    own = manager.load(
        [{"task": "own", **manager.task_index["gsm8k"].cfg, "dataset_path": "parquet", "dataset_name": None}
         | {"dataset_kwargs": {"data_files": files}, "task": "own"}]
    )["tasks"]["own"]  # fmt: skip
    own.set_config("num_fewshot", 4)
    own.set_fewshot_seed(FEWSHOT_SEED)
    own.build_all_requests()
    assert [request.args[0] for request in own.instances] == [item.prompt for item in whole.items]


def test_gsm8k_scores_are_those_of_an_independent_reading(copies: Path) -> None:
    """The last number of the text, without dollars, commas and a full stop at its end; strict: only behind ####."""
    endings = (
        "#### {}", "so {}.", "It is ${},000", "#### {} or 7", "{} apples", "none", "-{}", "#### -{}", "{}.5", "x={}\n",
    )  # fmt: skip
    task = load(copies, "gsm8k", shots=0)
    right, strict = [], []
    for ending in endings:
        answers = [ending.format(item.answer.split("#### ")[1]) for item in task.items]
        for scores in task.scorings[0].score(task.items, answers):
            right.append(scores["exact_match,flexible-extract"])
            strict.append(scores["exact_match,strict-match"])
    expected, exact = [], []
    for ending in endings:
        for item in task.items:
            wanted, text = item.answer.split("#### ")[1], ending.format(item.answer.split("#### ")[1])
            numbers = [n for n in re.findall(r"-?[$0-9.,]{2,}|-?[0-9]+", text) if n]
            last = numbers[-1].replace("$", "").replace(",", "").removesuffix(".") if numbers else None
            expected.append(float(last == wanted))
            marked = re.search(r"#### (-?[0-9.,]+)", text)
            exact.append(float(marked is not None and marked[1].replace(",", "").removesuffix(".") == wanted))
    assert len(right) == 80
    assert right == expected
    assert strict == exact
    assert 0 < sum(right) < 80


def test_choices_are_scored_by_likelihood_and_by_length(tmp_path: Path) -> None:
    row = arc(choice("Which?", 2, ("a" * 9, "bb", "ccc")))
    put(tmp_path, {"allenai/ai2_arc": {f"ARC-Easy/{one}.jsonl": [row] for one in ("train", "validation", "test")}})
    task = load(tmp_path, "arc_easy")
    (found,) = task.scorings[0].score(task.items, [[-4.0, -2.0, -2.5]])  # by character: 0.44, 1, 0.83
    assert found == {"acc": 0.0, "acc_norm": 0.0}
    (found,) = task.scorings[0].score(task.items, [[-9.0, -3.0, -2.5]])
    assert found == {"acc": 1.0, "acc_norm": 1.0}
    (found,) = task.scorings[0].score(task.items, [[-9.0, -2.0, -2.4]])  # 1, 1, 0.8
    assert found == {"acc": 0.0, "acc_norm": 1.0}


def test_programs_of_a_model_run_only_where_that_is_allowed(copies: Path) -> None:
    sources = DataSources(None, copies, {"QSPEC_DATA": str(copies)})
    for name in ("humaneval", "mbpp"):
        found = sources.task(TaskRequest(name))
        assert isinstance(found, NotMeasured)
        assert str(found) == (
            f"not measured: {name}: its score needs model-written code to be run, which --run-code allows"
        )
    task = load(copies, "humaneval")
    with running_code(allowed=False), pytest.raises(RuntimeError):
        task.scorings[0].score(task.items, ["    return 2 * n\n"] * 3)
    assert CODE.run is None


def test_code_tasks_are_scored_in_the_sandbox(copies: Path) -> None:
    human, mbpp = load(copies, "humaneval"), load(copies, "mbpp", shots=0)
    assert (human.items[0].prompt, human.stop[:2]) == ("def double(n):\n", ("\nclass", "\ndef"))
    with running_code(allowed=True) as confined:
        found = human.scorings[0].score(human.items, ["    return 2 * n\n", "    return n\n", "    1 +"])
        assert [one["pass@1"] for one in found] == [1, 0, 0]
        right = mbpp.scorings[0].score(
            mbpp.items[:3], ["def double(n):\n    return 2 * n\n", "x", "def double(n):\n  0"]
        )
        assert [one["pass_at_1"] for one in right] == [1, 0, 0]
    assert list(confined)
    assert (human.scorings[0].metric, mbpp.scorings[0].metric) == ("pass@1", "pass_at_1")


def test_math_is_minerva_math(copies: Path) -> None:
    task = load(copies, "math", shots=4)
    assert len(task.items) == 14
    found = task.scorings[0].score(task.items, ["Final Answer: The final answer is $1$. I hope it is correct."] * 14)
    assert [one["exact_match"] for one in found] == [1, 0] * 7


def test_a_task_says_which_packages_it_needs(copies: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lm_eval.tasks import TaskManager

    def load_without(*_: object) -> None:
        raise ImportError("No module named 'math_verify'")

    monkeypatch.setattr(TaskManager, "load", load_without)
    with pytest.raises(InputError, match='task "minerva_math" needs packages') as caught:
        load(copies, "math")
    assert "qspec[eval]" in (caught.value.hint or "")


def test_a_task_without_a_preset_is_lm_evals_own(tmp_path: Path) -> None:
    """Its data set is not pinned: the package datasets reads the folder by its own rules."""
    rows = [{"question": "is it?", "passage": "It is.", "idx": 0, "label": 1}]
    home = tmp_path / "aps/super_glue"
    write(home / "boolq/validation-00000-of-00001.parquet", rows)
    write(home / "boolq/train-00000-of-00001.parquet", rows)
    (home / "README.md").write_text(
        "---\nconfigs:\n- config_name: boolq\n  data_files:\n  - split: train\n    path: boolq/train-*\n"
        "  - split: validation\n    path: boolq/validation-*\n---\n"
    )
    task = load(tmp_path, "boolq")
    assert (task.title, task.scorings[0].metric, len(task.items)) == ("boolq", "acc", 1)
    assert task.items[0].prompt == "It is.\nQuestion: is it??\nAnswer:"
    assert [one.text for one in task.items[0].choices] == [" no", " yes"]


def test_one_error_names_the_data_of_all_tasks(tmp_path: Path) -> None:
    write(tmp_path / "text.jsonl", texts("a"))
    wanted = Evaluation(tasks=(TaskRequest("gsm8k"), TaskRequest("mmlu"), TaskRequest("boolq"), TaskRequest("mbpp")))
    put(tmp_path, {"google-research-datasets/mbpp": {"full/test.jsonl": [{}]}})
    with pytest.raises(InputError) as caught:
        DataSources(None, tmp_path, {"QSPEC_DATA": str(tmp_path)}).check(
            Calibration(text=FileText("text.jsonl", "text")), wanted
        )
    lines = caught.value.what.splitlines()
    assert lines[:2] == ["data that are not on this machine:", "  task gsm8k: openai/gsm8k at 740312add88f (main/*)"]
    assert lines[2].startswith("  task mmlu: cais/mmlu at c30699e8356d (")
    assert lines[2].endswith(" and 53 more)")
    assert lines[3:] == ['  task "boolq": aps/super_glue at main (*)']


def test_check_tells_which_files_tasks_are_read_from_and_writes_no_prompts(
    copies: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(copies / "text.jsonl", texts("a"))
    sources = DataSources(None, copies, {"QSPEC_DATA": str(copies)})
    monkeypatch.setattr(harness, "_built", None)
    wanted = Evaluation(tasks=(TaskRequest("piqa"), TaskRequest("wikitext"), TaskRequest("humaneval")))
    text, piqa, other, human = sources.check(Calibration(text=FileText("text.jsonl", "text")), wanted)
    lines = sorted(
        f"{hashlib.sha256((copies / 'baber/piqa' / name).read_bytes()).hexdigest()}  {name}\n"
        for name in ("piqa_train.parquet", "piqa_validation.parquet")
    )
    lines.sort(key=lambda line: line.split("  ")[1])
    assert piqa == DataPin("tasks", "piqa", "local copy", hashlib.sha256("".join(lines).encode()).hexdigest())
    assert (text.use, other.sha256, human.revision) == ("calibration", "not measured", "local copy")


def test_what_cannot_be_built_is_one_error(tmp_path: Path) -> None:
    put(tmp_path, {"openai/gsm8k": {"main/test.jsonl": [{"question": "q", "answer": "#### 1"}]}})
    with pytest.raises(InputError, match="cannot build the task \"gsm8k\" from the data here: 'train' is missing"):
        load(tmp_path, "gsm8k")
    put(tmp_path, {"openai/gsm8k": {"main/other.jsonl": [{"question": "q", "answer": "#### 1"}]}})
    with pytest.raises(InputError, match="the file's name has no split"):
        load(tmp_path, "gsm8k")


def test_names_and_shots_that_lm_eval_does_not_have(copies: Path) -> None:
    with pytest.raises(InputError, match='lm-eval has no task "gsm8kk"') as caught:
        load(copies, "gsm8kk")
    assert caught.value.hint == 'did you mean "gsm8k"?'
    with pytest.raises(InputError, match='"humaneval" is measured without examples'):
        load(copies, "humaneval", shots=2)


def test_tasks_that_ask_otherwise_are_not_measured(copies: Path) -> None:
    found = DataSources(None, copies, {}).task(TaskRequest("wikitext"))
    assert isinstance(found, NotMeasured)
    assert "loglikelihood_rolling" in found.reason


def test_without_lm_eval_the_error_names_the_extra(copies: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(InputError) as caught:
        load(copies, "gsm8k")
    assert caught.value.what == 'task "gsm8k" needs the package lm-eval, which is not installed'
    assert caught.value.hint == "install it: pip install 'qspec[eval]'"


def test_every_preset_is_a_task_of_lm_evals_with_data_at_a_commit() -> None:
    for preset in PRESETS.values():
        for leaf in leaves(preset.task):
            assert leaf.data is not None
            assert len(leaf.data.revision) == 40
            assert leaf.data.files != ("*",)
