"""Scratch repositories: git and pre-commit as a user runs them, untouched by the configuration of this machine."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.language.fakes import ROOT

IDENTITY = {"GIT_AUTHOR_NAME": "t", "GIT_AUTHOR_EMAIL": "t@example.org"}


@dataclass(frozen=True)
class Repository:
    """A working tree on the branch main, with `qspec` and `pre-commit` on its PATH."""

    folder: Path
    environment: dict[str, str]

    def run(self, *command: str, code: int | None = 0) -> str:
        """What a command prints, standard error behind standard output; code None: whatever it returns."""
        done = subprocess.run(
            command, cwd=self.folder, env=self.environment, capture_output=True, text=True, check=False
        )
        shown = done.stdout + done.stderr
        assert code is None or done.returncode == code, shown
        assert "Traceback" not in shown
        return shown

    def git(self, *arguments: str, code: int | None = 0) -> str:
        return self.run("git", *arguments, code=code)

    def commit(self, message: str) -> None:
        self.git("add", "-A")
        self.git("commit", "-qm", message)

    def write(self, name: str, text: str) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def replace(self, name: str, old: str, new: str) -> None:
        text = (self.folder / name).read_text()
        assert old in text
        self.write(name, text.replace(old, new))


def repository(folder: Path) -> Repository:
    """An empty one below `folder`."""
    programs, top = folder / "bin", folder / "repository"
    programs.mkdir(parents=True)
    top.mkdir()
    for name, module in (("qspec", "qspec"), ("pre-commit", "pre_commit")):
        (programs / name).write_text(f'#!/bin/sh\nexec {sys.executable} -m {module} "$@"\n')
        (programs / name).chmod(0o755)
    environment = {
        "PATH": f"{programs}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "HOME": str(folder),
        "PRE_COMMIT_HOME": str(folder / "pre-commit"),
        "GIT_CONFIG_SYSTEM": os.devnull,
        "GIT_CEILING_DIRECTORIES": str(folder),
        **IDENTITY,
        **{key.replace("AUTHOR", "COMMITTER"): value for key, value in IDENTITY.items()},
    }
    made = Repository(top, environment)
    made.git("init", "-q", "-b", "main")
    return made
