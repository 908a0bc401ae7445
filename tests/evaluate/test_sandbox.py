"""Model-written programs in their sandbox: right ones pass, and none does what it may not do."""

from __future__ import annotations

import json
import os
import re
import time
from pathlib import Path

import pytest

from qspec.errors import MachineError
from qspec.evaluate import sandbox
from qspec.evaluate.sandbox import Limits, Outcome, isolation_text, run_program

SHORT = Limits(cpu_seconds=1, wall_seconds=5)
ADD = ("def add(a, b):\n", "    return a + b\n", "def check(candidate):\n    assert candidate(2, 3) == 5\n", "add")
MUTATED = (
    "def double(xs):\n",
    "    return [2 * x for x in xs]\n",
    "def check(f):\n    assert f([1]) == [2]\n",
    "double",
)


def human_eval(prompt: str, completion: str, test: str, entry_point: str) -> str:
    """The program of human-eval's `check_correctness`."""
    return f"{prompt}{completion}\n{test}\ncheck({entry_point})"


def run(source: str, limits: Limits = SHORT) -> Outcome:
    outcome = run_program(source, limits)
    assert outcome.seconds < limits.wall_seconds + 2
    return outcome


@pytest.mark.parametrize("problem", [ADD, MUTATED])
def test_a_solution_passes_the_tests_of_its_problem_and_nothing_else_does(problem: tuple[str, ...]) -> None:
    prompt, solution, test, name = problem
    assert run(human_eval(prompt, solution, test, name)).passed
    assert run(human_eval(prompt, "    return None\n", test, name)).error == "AssertionError"
    assert (run(human_eval(prompt, "    return (\n", test, name)).error or "").startswith("SyntaxError")


def test_asserts_in_the_form_of_mbpp() -> None:
    asserts = "\n".join(["assert first([3, 1]) == 3", "assert first([]) is None"])
    assert run(f"def first(xs):\n    return xs[0] if xs else None\n{asserts}").passed
    assert (run(f"def first(xs):\n    return xs[0]\n{asserts}").error or "").startswith("IndexError")


ENDED_EARLY = "it ended by itself, before its tests were through"
EPERM = "PermissionError: [Errno 1] Operation not permitted"


@pytest.mark.parametrize(
    ("source", "error"),
    [
        ("while True: pass", "it took more than 1 s of CPU time"),
        ("import time\ntime.sleep(60)", "it took more than 1 s"),
        pytest.param(
            "import signal\nsignal.signal(signal.SIGXCPU, lambda *_: 0)\nwhile True: pass",
            "it was ended by SIGKILL",
            marks=pytest.mark.slow,
        ),
        ("import os\nwhile True: os.fork()", EPERM),
        ("import subprocess\nsubprocess.run(['true'])", EPERM),
        ("bytearray(10 << 30)", "MemoryError"),
        ("import socket\nsocket.socket()", EPERM),
        ("import os\nos.kill(os.getppid(), 9)", EPERM),
        ("open('big', 'w').write('x' * (17 << 20))", "OSError: [Errno 27] File too large"),
        ("[open('/dev/null') for _ in range(100)]", "OSError: [Errno 24] Too many open files: '/dev/null'"),
        ("raise SystemExit", "SystemExit"),
        ("import os\nos._exit(0)", ENDED_EARLY),
        ("import ctypes\nctypes.string_at(0)", "it was ended by SIGSEGV"),
        ("input()", "EOFError: EOF when reading a line"),
        ("class E(Exception):\n    def __str__(self): raise self\nraise E", "E"),
    ],
    ids=lambda value: re.sub(r"\W+", " ", value)[:30],
)
def test_what_a_program_may_not_do_ends_it_as_failed(source: str, error: str) -> None:
    outcome = run(source, Limits(cpu_seconds=1, wall_seconds=1 if "sleep" in source else 8))
    if not {"seccomp", "Landlock"} <= set(outcome.isolation):
        pytest.skip(f"this kernel gives {isolation_text(outcome.isolation)}")
    assert outcome.error == error


@pytest.mark.parametrize("act", ["open(path, 'w')", "os.remove(path)", "os.truncate(path, 0)", "os.chmod(path, 0)"])
def test_files_outside_the_folder_stay_as_they_are(tmp_path: Path, act: str) -> None:
    path = tmp_path / "kept"
    path.write_text("as it was")
    mode = path.stat().st_mode
    outcome = run(f"import os\npath = {str(path)!r}\n{act}")
    if not {"seccomp", "Landlock"} <= set(outcome.isolation):
        pytest.skip(f"this kernel gives {isolation_text(outcome.isolation)}")
    assert outcome.error is not None
    assert "Errno" in outcome.error
    assert (path.read_text(), path.stat().st_mode) == ("as it was", mode)


def test_a_program_may_use_its_folder_threads_and_the_null_device() -> None:
    source = (
        "import os, threading\n"
        "open('a', 'w').write('x'); os.mkdir('b'); os.rename('a', 'b/a'); open(os.devnull, 'w').write('x')\n"
        "done = []\nthread = threading.Thread(target=done.append, args=(1,)); thread.start(); thread.join()\n"
        "assert done == [1] and os.listdir('.') == ['b'] and os.environ['HOME'] == os.getcwd()\n"
        "open('where', 'w').close()\nprint('x' * 10**6)"
    )
    assert run(source).error is None


def test_nothing_is_left_of_a_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither its folder nor a thread that goes on."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    start = time.monotonic()
    thread = "import threading, time\nthreading.Thread(target=time.sleep, args=(60,)).start()"
    assert run(f"open('left', 'w').close()\n{thread}").passed
    assert time.monotonic() - start < 5
    assert list(tmp_path.iterdir()) == []


def test_without_the_kernels_help_limits_hold_and_the_gaps_are_named() -> None:
    greedy = run_program("bytearray(10 << 30)", SHORT, layers=())
    assert (greedy.error, greedy.isolation) == ("MemoryError", ("resource limits",))
    gaps = "programs could write this user's files and start processes and reach the network"
    assert isolation_text(greedy.isolation) == f"resource limits; {gaps}"
    assert isolation_text(("bubblewrap", "resource limits")).endswith("limits; programs could start processes")
    assert isolation_text(("seccomp", "Landlock", "resource limits")) == "seccomp, Landlock, resource limits"


@pytest.mark.skipif(sandbox.bubblewrap() is None, reason="bubblewrap is not installed, or may make no namespaces")
def test_bubblewrap_gives_a_namespace_of_processes() -> None:
    outcome = run("import os\nassert os.getpid() < 5")
    assert (outcome.error, outcome.isolation[0]) == (None, "bubblewrap")
    assert run("import time\ntime.sleep(60)", Limits(wall_seconds=1)).error == "it took more than 1 s"


def test_a_bubblewrap_that_may_not_make_namespaces_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bwrap").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "bwrap").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(sandbox, "bubblewrap", sandbox.bubblewrap.__wrapped__)
    outcome = run("assert True")
    assert outcome.passed
    assert "bubblewrap" not in outcome.isolation


def test_a_process_that_cannot_be_confined_is_no_answer_of_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "SCRIPT", Path("absent.py"))
    with pytest.raises(MachineError, match="did not start"):
        run_program("assert True")


@pytest.mark.slow
def test_every_canonical_solution_of_humaneval_passes() -> None:
    """QSPEC_HUMANEVAL names HumanEval.jsonl of openai/human-eval."""
    path = os.environ.get("QSPEC_HUMANEVAL")
    if path is None:
        pytest.skip("QSPEC_HUMANEVAL names no HumanEval.jsonl")
    rows = [json.loads(line) for line in Path(path).read_text().splitlines()]
    failed = {}
    for row in rows:
        outcome = run_program(human_eval(row["prompt"], row["canonical_solution"], row["test"], row["entry_point"]))
        if not outcome.passed:
            failed[row["task_id"]] = outcome.error
    assert (len(rows), failed) == (164, {})
