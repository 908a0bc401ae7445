"""The paper's ten tasks as folders of hub data sets: made-up rows, or those of other copies put into the hub's form."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.hub_data import Rows, write

Files = Mapping[str, Rows]
Row = Mapping[str, Any]
LETTERS = "ABCDE"
MATH_SUBJECTS = (
    "algebra", "counting_and_probability", "geometry", "intermediate_algebra", "number_theory", "prealgebra",
    "precalculus",
)  # fmt: skip


def arc(row: Row) -> Row:
    """{question, choices, answer from 0} as allenai/ai2_arc has it."""
    choices = {"text": row["choices"], "label": list(LETTERS[: len(row["choices"])])}
    return {"id": "x", "question": row["question"], "choices": choices, "answerKey": LETTERS[row["answer"]]}


def piqa(row: Row) -> Row:
    first, second = row["choices"]
    return {"goal": row["question"], "sol1": first, "sol2": second, "label": row["answer"]}


def winogrande(row: Row) -> Row:
    first, second = row["choices"]
    return {"sentence": row["question"], "option1": first, "option2": second, "answer": str(row["answer"] + 1)}


def mmlu(row: Row, subject: str) -> Row:
    return {"question": row["question"], "subject": subject, "choices": row["choices"], "answer": row["answer"]}


def put(folder: Path, sets: Mapping[str, Files]) -> Path:
    """Writes data sets below a folder, under their ids."""
    for id, files in sets.items():
        for name, rows in files.items():
            write(folder / id / name, rows)
    return folder


def choice(text: str, answer: int = 0, choices: tuple[str, ...] = ("red", "green", "blue", "grey")) -> Row:
    return {"question": text, "choices": list(choices), "answer": answer}


def made_up(folder: Path) -> Path:
    """Every task with a handful of rows; all 57 subjects of MMLU with one each."""
    four = [choice(f"Which colour is number {number}?", number % 4) for number in range(6)]
    two = [choice(f"How to count to {number}?", number % 2, ("slowly", "in one go")) for number in range(6)]
    blank = [choice(f"Ann saw Bo because _ was {n} miles away.", n % 2, ("Ann", "Bo")) for n in range(6)]
    sums = [{"question": f"What is {n} and {n}?", "answer": f"{n} + {n} = {2 * n}\n#### {2 * n}"} for n in range(8)]
    endings = {"endings": ["one.", "two.", "three.", "four."], "label": "2", "activity_label": "Counting"}
    ended = [{"ctx_a": f"He counts to {n}.", "ctx_b": "the next is", **endings} for n in range(4)]
    code = {"code": "def double(n):\n    return 2 * n", "test_setup_code": "", "challenge_test_list": []}
    tests = ["assert double(1) == 2", "assert double(2) == 4", "assert double(0) == 0"]
    problems = [{"task_id": n, "text": "Write a function double.", "test_list": tests, **code} for n in range(11, 14)]
    solved = {"canonical_solution": "    return 2 * n\n", "entry_point": "double"}
    checks = "\n\ndef check(candidate):\n    assert candidate(2) == 4\n"
    human = [{"task_id": f"HumanEval/{n}", "prompt": "def double(n):\n", "test": checks, **solved} for n in range(3)]
    maths = [
        {"problem": f"What is {n}?", "level": "Level 1", "type": "x", "solution": f"\\boxed{{{n}}}"} for n in (1, 2)
    ]
    return put(
        folder,
        {
            "allenai/ai2_arc": {
                f"{name}/{split}-00000-of-00001.parquet": [arc(row) for row in four]
                for name in ("ARC-Easy", "ARC-Challenge")
                for split in ("train", "validation", "test")
            },
            "baber/piqa": {f"piqa_{split}.parquet": [piqa(row) for row in two] for split in ("train", "validation")},
            "allenai/winogrande": {
                f"winogrande_xl/{split}-00000-of-00001.parquet": [winogrande(row) for row in blank]
                for split in ("train", "validation")
            },
            "Rowan/hellaswag": {f"data/{split}-00000-of-00001.parquet": ended for split in ("train", "validation")},
            "openai/gsm8k": {f"main/{split}-00000-of-00001.parquet": sums for split in ("train", "test")},
            "openai/openai_humaneval": {"openai_humaneval/test-00000-of-00001.parquet": human},
            "google-research-datasets/mbpp": {
                f"full/{split}-00000-of-00001.parquet": problems for split in ("train", "validation", "prompt", "test")
            },
            "EleutherAI/hendrycks_math": {
                f"{subject}/{split}-00000-of-00001.parquet": maths
                for subject in MATH_SUBJECTS
                for split in ("train", "test")
            },
            "cais/mmlu": {
                f"{subject}/{split}-00000-of-00001.parquet": [mmlu(row, subject) for row in rows]
                for subject in mmlu_subjects()
                for split, rows in (("dev", four[:5]), ("test", four[5:]))
            },
        },
    )


def mmlu_subjects() -> list[str]:
    """As lm-eval names them."""
    import lm_eval.tasks

    folder = Path(lm_eval.tasks.__file__).parent / "mmlu" / "default"
    return sorted(path.stem.removeprefix("mmlu_") for path in folder.glob("mmlu_*.yaml"))


def converted(source: Path, folder: Path) -> Path:
    """GSM8K, ARC-Easy, PIQA and HumanEval of a folder that has them in other forms, as on the hub.

    Of the first three only rows that the stand-ins' 256 tokens have room for.
    """

    def lines(name: str) -> list[Row]:
        return [json.loads(line) for line in (source / name).read_text(encoding="utf-8").splitlines()]

    def short(name: str) -> list[Row]:
        return [row for row in lines(name) if len(row["question"]) + max(map(len, row.get("choices", [""]))) < 160]

    arc_easy = [arc(row) for row in short("multiple-choice/ARC-Easy-test.jsonl")]
    held = [piqa(row) for row in short("multiple-choice/piqa-test.jsonl")]
    return put(
        folder,
        {
            "openai/gsm8k": {f"main/{split}.jsonl": short(f"gsm8k/{split}.jsonl") for split in ("train", "test")},
            "allenai/ai2_arc": {f"ARC-Easy/{split}.jsonl": arc_easy for split in ("train", "validation", "test")},
            "baber/piqa": {f"piqa_{split}.jsonl": held for split in ("train", "validation")},
            "openai/openai_humaneval": {"openai_humaneval/test.jsonl": lines("humaneval/HumanEval.jsonl")},
        },
    )
