"""`qspec git-diff`: what git runs for a recipe in `git diff` after `qspec git-setup`: the meaning, then the text.

The text is a patch as git writes it, so that what `git diff` prints can still be applied. A recipe that does not check
has no meaning: then one line says why, and the text follows. Bases are read from the working tree.
"""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from qspec.cli.output import discard, flush, say, unified_diff, write
from qspec.diagnostics import Diagnostic, RecipeError, Source, errors
from qspec.difference.git import git_or_none
from qspec.errors import QspecError, UsageError, visible
from qspec.files import read_input
from qspec.language.parser import decode, read

NOTHING = "/dev/null"
COLORS = {"+": "\x1b[32m", "-": "\x1b[31m", "@": "\x1b[36m"}  # as git has them where nobody chose others
BOLD, RESET = "\x1b[1m", "\x1b[m"


@dataclass(frozen=True)
class _Side:
    """What git gives of a file. side: "a" before, "b" now. data: None where it is not there."""

    side: str
    path: str
    data: bytes | None
    mode: str

    @property
    def name(self) -> str:
        return NOTHING if self.data is None else f"{self.side}/{self.path}"

    @property
    def text(self) -> str | None:
        """None for a binary file."""
        try:
            return "" if self.data is None else self.data.decode("utf-8")
        except UnicodeDecodeError:
            return None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "arguments",
        metavar="ARGUMENT",
        nargs="+",
        help="PATH OLD-FILE OLD-HEX OLD-MODE NEW-FILE NEW-HEX NEW-MODE, and of a file that moved its new path",
    )


def run(args: argparse.Namespace) -> int:
    if len(args.arguments) == 1:
        say(f"* Unmerged path {args.arguments[0]}")
        return 0
    if len(args.arguments) < 7:
        raise UsageError("git runs this command, with seven arguments", hint="set it up: qspec git-setup")
    path, old_file, _, old_mode, new_file, _, new_mode, *moved = args.arguments
    old, new = _side("a", path, old_file, old_mode), _side("b", moved[0] if moved else path, new_file, new_mode)
    meaning, patch = _meaning(old, new), _patch(old, new)
    try:
        say(meaning)
        _say_patch(patch)
        flush()
    except BrokenPipeError:  # the reader has seen enough, which git would take for a failure
        discard(sys.stdout)
    return 0


def _side(side: str, path: str, file: str, mode: str) -> _Side:
    return _Side(side, path, None if file == NOTHING else read_input(Path(file)), mode)


def _meaning(old: _Side, new: _Side) -> str:
    if old.data is None:
        return f"{new.path}: new"
    if new.data is None:
        return f"{old.path}: removed"
    try:
        return _difference(old, new)
    except RecipeError as error:
        first = errors(error.diagnostics)[0]
        place = error.sources[first.span.path].position(first.span.start)
        return f"{first.span.path}:{place.line}: {first.message} ({first.code}): its text alone"
    except QspecError as error:
        return f"{new.path}: {error.what}: its text alone"


def _difference(old: _Side, new: _Side) -> str:
    """Errors: as `diff`; a recipe's are named by its path, behind a/ what it was and behind b/ what it is."""
    from qspec.difference import text
    from qspec.difference.compare import compare
    from qspec.difference.versions import configs, version_of

    before, after = (version_of(*decode(one.data or b"", f"{one.side}/{one.path}"), _base, {}) for one in (old, new))
    return text.render(compare(before, after, configs(before, after, None)))


def _base(target: Path) -> tuple[Source, list[Diagnostic]]:
    """A base, as it is in the working tree, of a recipe below a/ or b/."""
    return read(Path(*target.parts[1:]))


def _patch(old: _Side, new: _Side) -> str:
    """As git writes it, without hashes."""
    lines = [f"diff --git a/{old.path} b/{new.path}"]
    if old.data is None:
        lines.append(f"new file mode {new.mode}")
    elif new.data is None:
        lines.append(f"deleted file mode {old.mode}")
    elif old.mode != new.mode:
        lines += [f"old mode {old.mode}", f"new mode {new.mode}"]
    if old.path != new.path:
        lines += [f"rename from {old.path}", f"rename to {new.path}"]
    head = "".join(f"{line}\n" for line in lines)
    if old.text is None or new.text is None:
        return f"{head}Binary files {old.name} and {new.name} differ\n"
    return head + unified_diff(old.text, new.text, old.name, new.name)


def _say_patch(patch: str) -> None:
    """In colours where git would have them."""
    shown = visible(patch)
    terminal = "true" if sys.stdout.isatty() or os.environ.get("GIT_PAGER_IN_USE") else "false"
    if git_or_none("config", "--get-colorbool", "color.diff", terminal) != b"true\n":
        write(shown)
        return
    for line in shown.splitlines():
        color = BOLD if line.startswith(("diff ", "--- ", "+++ ")) else COLORS.get(line[:1], "")
        write(f"{color}{line}{RESET if color else ''}\n")
