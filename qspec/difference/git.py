"""Files as git has them: `REVISION:PATH`."""

from __future__ import annotations

import os
import posixpath
import subprocess
from pathlib import Path

from qspec.errors import InputError, MachineError


def git(*arguments: str, folder: Path | None = None) -> bytes:
    """What a git command prints. Raises InputError with git's own words where it fails, MachineError without git."""
    try:
        done = subprocess.run(
            ["git", *arguments],
            cwd=folder,
            env=os.environ | {"LC_ALL": "C"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
        )
    except FileNotFoundError:
        raise MachineError("git is not installed", hint="install git, or give files") from None
    if done.returncode:
        said = done.stderr.decode("utf-8", "replace").strip().splitlines() or [f"exit code {done.returncode}"]
        raise InputError(f"git {arguments[0]}: {said[0].removeprefix('fatal: ')}", where=str(folder or Path.cwd()))
    return done.stdout


def repository(folder: Path | None = None) -> Path:
    """The top folder of the working tree. Raises InputError where there is none."""
    try:
        return Path(os.fsdecode(git("rev-parse", "--show-toplevel", folder=folder)).removesuffix("\n"))
    except InputError as error:
        raise InputError(
            f"there is no git working tree here: {error.what.removeprefix('git rev-parse: ')}",
            where=error.where,
            hint="run the command inside of the repository",
        ) from None


def split(text: str) -> tuple[str, str] | None:
    """REVISION and PATH of `REVISION:PATH`, of which an empty revision is the index; None for another text."""
    revision, colon, path = text.partition(":")
    return (revision, path) if colon and path else None


def read_blob(revision: str, path: str, limit: int) -> bytes:
    """A file's content in a revision, of at most `limit` bytes.

    path: from the top of the repository, or with ./ from the working folder. Raises InputError where there is no such
    file, revision or repository.
    """
    place = posixpath.normpath(path)
    if path.startswith("./") and not place.startswith("../"):
        place = f"./{place}"
    name = f"{revision}:{place}"
    if revision.startswith("-") or "\n" in name or "\0" in name:
        raise InputError("this is no revision and path", where=name, hint="write it as main:recipes/r.qs")
    try:
        if git("cat-file", "-t", name) != b"blob\n":
            raise InputError(
                f"{place} is a folder in {revision or 'the index'}", where=name, hint="name a recipe or a report.json"
            )
        size = int(git("cat-file", "-s", name))
        if size > limit:
            raise InputError(f"the file has {size} bytes, and {limit} are the most", where=name)
        return git("cat-file", "blob", name)
    except InputError as error:
        if not error.what.startswith("git "):
            raise
        raise _missing(revision, place, name) from None


def _missing(revision: str, path: str, name: str) -> InputError:
    """Why git has no such file."""
    prefix = os.fsdecode(git_or_none("rev-parse", "--show-prefix") or b"").removesuffix("\n")
    if git_or_none("rev-parse", "--git-dir") is None:
        return InputError("this is not a git repository", where=name, hint="run the command inside of one")
    if revision and git_or_none("rev-parse", "--verify", "--quiet", f"{revision}^{{tree}}") is None:
        return InputError(
            f"git knows no revision {revision!r}", where=name, hint="`git branch -a` lists branches; fetch it first"
        )
    hint = "`git ls-tree -r --name-only REVISION` lists the files"
    if git_or_none("cat-file", "-e", f"{revision}:./{path}") is not None:
        hint = f"paths start at the top of the repository: write {revision}:{prefix}{path}"
    return InputError(f"{revision or 'the index'} has no file {path}", where=name, hint=hint)


def git_or_none(*arguments: str) -> bytes | None:
    """What a git command prints; None where it fails."""
    try:
        return git(*arguments)
    except InputError:
        return None
