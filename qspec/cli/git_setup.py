"""`qspec git-setup`: `git diff` of recipes tells what changed by meaning, then shows the text; `--remove` undoes it."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

from qspec.cli.output import near, say
from qspec.difference.git import git, git_or_none, repository
from qspec.errors import InputError
from qspec.files import read_input, write_whole

DRIVER = "qspec"
ATTRIBUTES = f"*.qs diff={DRIVER}"
HUNKS = r"^(recipe|calibrate|scheme|search|evaluate|emit|layers|apply|param)\b.*"  # what is behind the @@ of a hunk
OURS = "-m qspec git-diff"  # how every command ends that this one has set


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--remove", action="store_true", help="take out the lines and settings that git-setup made")


def run(args: argparse.Namespace) -> int:
    attributes = repository() / ".gitattributes"
    if args.remove:
        done = [*_remove_line(attributes), *_remove_driver()]
        say("\n".join(done) or "there was nothing to remove")
        return 0
    _check_attribute()
    done = [*_add_driver(), *_add_line(attributes)]
    say("\n".join(done) or "it is set up")
    return 0


def _check_attribute() -> None:
    """Raises InputError where somebody else's driver shows recipes."""
    driver = git("check-attr", "diff", "recipe.qs").decode().strip().rpartition(": ")[2]
    if driver not in ("unspecified", "set", DRIVER):
        raise InputError(
            f"git attributes give *.qs the diff driver {driver!r}",
            where=str(repository()),
            hint="take that line out of .gitattributes, or keep it and use `qspec diff`",
        )


def _add_driver() -> list[str]:
    """The driver is this repository's own, in its git config: a command is never taken from a file that others send."""
    command = f"{shlex.quote(sys.executable)} {OURS}"
    wanted = {f"diff.{DRIVER}.command": command, f"diff.{DRIVER}.xfuncname": HUNKS}
    before = {key: _setting(key) for key in wanted}
    stranger = before[f"diff.{DRIVER}.command"]
    if stranger is not None and not stranger.endswith(OURS):
        raise InputError(
            f"git has another command for the diff driver {DRIVER}: {stranger}",
            where=str(repository()),
            hint=f"git config --unset diff.{DRIVER}.command",
        )
    for key, value in wanted.items():
        git("config", "--local", key, value)
    return [f"set {key} in the repository's git config" for key in wanted if before[key] != wanted[key]]


def _remove_driver() -> list[str]:
    done = []
    for key, ours in ((f"diff.{DRIVER}.command", OURS), (f"diff.{DRIVER}.xfuncname", HUNKS)):
        value = _setting(key)
        if value is not None and value.endswith(ours):
            git("config", "--local", "--unset", key)
            done.append(f"removed {key} from the repository's git config")
    return done


def _setting(key: str) -> str | None:
    value = git_or_none("config", "--local", "--get", key)
    return None if value is None else value.decode("utf-8", "replace").removesuffix("\n")


def _add_line(path: Path) -> list[str]:
    """In .gitattributes, which is committed: where the driver is not set up, git shows the text as ever."""
    before = _content(path)
    if ATTRIBUTES in before.decode("utf-8", "replace").split("\n"):
        return []
    gap = b"" if before.endswith(b"\n") or not before else b"\n"
    write_whole(path, before + gap + f"{ATTRIBUTES}\n".encode())
    return [f"added `{ATTRIBUTES}` to {near(path)}"]


def _remove_line(path: Path) -> list[str]:
    before = _content(path)
    after = b"".join(line for line in before.splitlines(keepends=True) if line.strip() != ATTRIBUTES.encode())
    if after == before:
        return []
    if after:
        write_whole(path, after)
    else:
        path.unlink()
    return [f"removed `{ATTRIBUTES}` from {near(path)}"]


def _content(path: Path) -> bytes:
    try:
        return read_input(path)
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise InputError(f"the git attributes cannot be read: {error.strerror}", where=str(path)) from None
