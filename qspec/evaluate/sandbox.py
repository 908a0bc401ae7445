"""Runs programs that a model wrote: each in a process of its own, with limits, in a folder that is gone afterwards.

A program may compute, start threads, and read and write below its folder. It may start no process, reach no network,
signal nobody and write no other file. What enforces that is named with every outcome: bubblewrap's namespaces where
it is installed and works, Landlock and a filter of system calls (seccomp) where the kernel has them, and resource
limits everywhere. It can read what its user can read, and one that sets out to can report itself as passed, as under
human-eval's own harness: it is confined, not trusted.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from typing import Any

from qspec.errors import MachineError

SCRIPT = Path(__file__).with_name("confined.py")
LAYERS = ("bubblewrap", "seccomp", "Landlock")  # which are tried; resource limits always hold


@dataclass(frozen=True)
class Limits:
    """cpu_seconds: human-eval allows 3 by the clock; a loaded machine must not decide about an answer."""

    cpu_seconds: int = 3
    wall_seconds: float = 15.0
    memory_bytes: int = 4 << 30  # of address space
    file_bytes: int = 16 << 20  # of one file
    open_files: int = 64


@dataclass(frozen=True)
class Outcome:
    """error: None where the program came to its end, else what stopped it. isolation: what was in force."""

    error: str | None
    seconds: float
    isolation: tuple[str, ...]

    @property
    def passed(self) -> bool:
        return self.error is None


def isolation_text(isolation: Sequence[str]) -> str:
    """What was in force, and what nothing prevented."""
    gaps = []
    if not {"bubblewrap", "Landlock"} & set(isolation):
        gaps.append("write this user's files")
    if "seccomp" not in isolation:
        gaps.append("start processes" if "bubblewrap" in isolation else "start processes and reach the network")
    could = f"; programs could {' and '.join(gaps)}" if gaps else ""
    return ", ".join(isolation) + could


def run_program(source: str, limits: Limits | None = None, layers: Sequence[str] = LAYERS) -> Outcome:
    """Runs a solution followed by the tests that it must pass, as human-eval does: `exec` in an empty namespace.

    The program fails where it raises anything, exits by itself, is ended by a signal or a limit. layers: which
    of `LAYERS` are tried. Raises MachineError where no process could be confined.
    """
    limits = limits or Limits()
    start = time.perf_counter()
    with (
        TemporaryDirectory(ignore_cleanup_errors=True) as folder,
        TemporaryFile("w+") as job,
        TemporaryFile() as result,
    ):
        program = bubblewrap() if "bubblewrap" in layers else None
        around = _bubblewrap(program, folder) if program else []
        own = {"source": source, "folder": folder, "layers": list(layers), "around": ["bubblewrap"] if program else []}
        json.dump(own | asdict(limits), job)
        job.seek(0)
        process = subprocess.Popen(
            [*around, sys.executable, "-I", str(SCRIPT)],
            stdin=job,
            stdout=result,
            stderr=subprocess.DEVNULL,
            cwd=folder,
            env={"PATH": os.defpath, "HOME": folder, "TMPDIR": folder, "OPENBLAS_NUM_THREADS": "1"},
            start_new_session=True,
        )
        stopped = _ended(process, limits)
        result.seek(0)
        said = _said(result.read(1 << 16))
    if "isolation" not in said:
        raise MachineError(
            f"the process that runs a program did not start: {stopped or 'it ended by itself'}",
            hint="look at this machine's limits of memory and processes; or measure without --run-code",
        )
    error = stopped or said.get("error", "it ended by itself, before its tests were through")
    return Outcome(error, time.perf_counter() - start, tuple(said["isolation"]))


def _ended(process: subprocess.Popen[bytes], limits: Limits) -> str | None:
    """Waits for the program and ends what is left of it; None where it ended by itself."""
    try:
        code = process.wait(limits.wall_seconds)
    except subprocess.TimeoutExpired:
        return f"it took more than {limits.wall_seconds:g} s"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    number = -code if code < 0 else code - 128  # bubblewrap gives a signal of the program as a shell does
    if number == signal.SIGXCPU:
        return f"it took more than {limits.cpu_seconds} s of CPU time"
    return f"it was ended by {signal.Signals(number).name}" if number in set(signal.Signals) else None


def _said(text: bytes) -> dict[str, Any]:
    """What `confined.py` wrote: its lines, merged."""
    said: dict[str, Any] = {}
    for line in text.splitlines():
        with contextlib.suppress(ValueError):
            said.update(json.loads(line))
    return said


def _bubblewrap(program: str, folder: str) -> list[str]:
    """Namespaces of its own, and every file system but the folder read-only."""
    mounts = ["--ro-bind", "/", "/", "--dev", "/dev", "--proc", "/proc", "--bind", folder, folder, "--chdir", folder]
    return [program, *mounts, "--unshare-all", "--die-with-parent", "--cap-drop", "ALL", "--"]


@cache
def bubblewrap() -> str | None:
    """Its path, where the kernel and the container that this runs in let it make namespaces."""
    program = shutil.which("bwrap")
    if program is None:
        return None
    with TemporaryDirectory() as folder:
        tried = subprocess.run([*_bubblewrap(program, folder), "true"], capture_output=True, check=False)
    return None if tried.returncode else program
