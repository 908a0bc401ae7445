"""`qspec fix FILE...`: files of an older version of the language in this one."""

from __future__ import annotations

import argparse
from pathlib import Path

from qspec.cli.output import say, unified_diff
from qspec.cli.recipes import read_source, recipe_files, rewrite_recipe
from qspec.diagnostics import RecipeError
from qspec.errors import UsageError
from qspec.language.versions import VERSION, other_version, upgraded


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("files", metavar="FILE", nargs="+", help="a .qs file, or a folder of them")
    parser.add_argument("--diff", action="store_true", help="change nothing; print what would change")


def run(args: argparse.Namespace) -> int:
    if "-" in args.files:
        raise UsageError("fix writes files", hint="name one, or a folder")
    files = recipe_files(args.files)
    changed = sum(_fix(path, args.diff) for path in files)
    if not changed:
        say(f"nothing to upgrade: version {VERSION} of the language is the newest that this qspec knows")
    return 0


def _fix(path: str, only_show: bool) -> bool:
    """Whether the file changes. Raises RecipeError where it is none, or of a version that cannot be upgraded."""
    source, problems = read_source(path)
    after = upgraded(source)
    found = problems or [problem for problem in [other_version(after)] if problem]
    if found:
        raise RecipeError(found, {path: after})
    if after == source:
        return False
    if only_show:
        say(unified_diff(source.text, after.text, path, f"{path} (version {VERSION})"), end="")
    else:
        rewrite_recipe(Path(path), after.text)
        say(f"{path} is written in version {VERSION} now")
    return True
