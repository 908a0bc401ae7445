"""Scores that run what a model wrote: lm-eval's code tasks get the sandbox as their runner."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from qspec.data.harness import CODE
from qspec.evaluate.sandbox import isolation_text, run_program


@contextmanager
def running_code(allowed: bool) -> Iterator[dict[str, None]]:
    """Gives what the programs were confined by, once one has run; where it is not allowed, none runs.

    Errors: MachineError where no process can be confined.
    """
    confined: dict[str, None] = {}

    def run(program: str) -> bool:
        outcome = run_program(program)
        confined[isolation_text(outcome.isolation)] = None
        return outcome.passed

    before, CODE.run = CODE.run, run if allowed else None
    try:
        yield confined
    finally:
        CODE.run = before
