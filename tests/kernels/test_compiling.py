"""A pass' kernels are compiled at once, before one is launched.

Triton's part of a launch is played by `Kernel`, and is its own in `launched`, under a driver without a GPU;
tests/gpu/test_compiling.py has a GPU's.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from inspect import signature
from pathlib import Path
from typing import Any

import pytest
from triton import AsyncCompileMode
from triton.runtime._async_compile import active_mode

from qspec.kernels import compiling
from qspec.kernels.compiling import compiled

ROOT = Path(__file__).parent.parent.parent


class Loaded:
    """A compiled kernel, which is loaded when `run` is asked for."""

    def __init__(self, log: list[str], name: str) -> None:
        self._log, self._name = log, name

    @property
    def run(self) -> Callable[[], None]:
        self._log.append(f"load {self._name}")
        return lambda: self._log.append(f"launch {self._name}")


class Kernel:
    """Looked up, compiled at once or handed to the active mode, then launched unless there is none."""

    def __init__(self, log: list[str], name: str, compile_kernel: Callable[[], None] = lambda: None) -> None:
        self._log, self._name, self._compile_kernel = log, name, compile_kernel
        self.kernel: Loaded | None = None

    def _compiled(self) -> Loaded:
        self._compile_kernel()
        return Loaded(self._log, self._name)

    def launch(self) -> None:
        mode = active_mode.get()
        if self.kernel is None and mode is not None:
            keep: Any = lambda kernel: setattr(self, "kernel", kernel)  # noqa: E731
            cleanup = (lambda _: None,) * (len(signature(AsyncCompileMode.submit).parameters) - 4)  # from Triton 3.7 on
            if mode.submit(self._name, self._compiled, keep, *cleanup) is None:
                return
        elif self.kernel is None:
            self.kernel = self._compiled()
        assert self.kernel is not None
        self.kernel.run()


def test_kernels_are_compiled_at_once_and_then_launched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each compiler waits for the other one, which none of them would survive alone."""
    monkeypatch.setattr(compiling, "cores", lambda: 2)
    log: list[str] = []
    both = threading.Barrier(2, timeout=30)
    first, second = (Kernel(log, name, lambda: (both.wait(), None)[1]) for name in ("first", "second"))

    def call() -> int:
        for kernel in (first, second, first):
            kernel.launch()
        return len(log)

    assert compiled(call) == 2 + 6  # loaded once ahead; then Triton asks for each kernel's `run`
    assert sorted(log[:2]) == ["load first", "load second"]
    assert log[2:] == ["load first", "launch first", "load second", "launch second", "load first", "launch first"]
    assert compiled(call) == 8 + 6  # nothing is compiled, and the call made once


def test_triton_launches_when_all_is_loaded(tmp_path: Path) -> None:
    """Two of one kernel and one in Gluon, with an empty cache: a call without launches, one with them; then one."""
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "tests.kernels.launched"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    first, loaded_before, second = done.stdout.splitlines()
    loads = ["load added", "load doubled", "load doubled"]
    assert first == str([*loads, "call", "call", "launch", "launch", "launch"])
    assert loaded_before == "True"
    assert second == str(["call", "launch", "launch", "launch"])


def test_an_error_is_that_of_the_launch() -> None:
    def refuse() -> None:
        raise RuntimeError("out of registers")

    with pytest.raises(RuntimeError, match="out of registers"):
        compiled(Kernel([], "one", refuse).launch)
    assert active_mode.get() is None


def test_an_interrupted_call_leaves_later_launches_alone() -> None:
    log: list[str] = []

    def interrupted() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compiled(interrupted)
    Kernel(log, "one").launch()
    assert log == ["load one", "launch one"]


def test_long_compilation_is_said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(compiling, "SILENT", 0.02)
    slow = threading.Event()
    compiled(Kernel([], "slow", lambda: (slow.wait(0.2), None)[1]).launch)
    assert capsys.readouterr().err == "compiling 1 kernel for this machine ... 0 s\n"
    compiled(Kernel([], "fast").launch)
    assert capsys.readouterr().err == ""


def test_a_call_that_cannot_be_made_without_launches_is_made_with_them(capsys: pytest.CaptureFixture[str]) -> None:
    """As one that reads a kernel's result would be."""
    kernel = Kernel(log := [], "one")

    def call() -> str:
        kernel.launch()
        return log[2]

    assert compiled(call) == "launch one"
    assert capsys.readouterr().err == "kernels were compiled one after another: list index out of range\n"
