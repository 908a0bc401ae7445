"""`qspec check FILE...`: every mistake in a recipe, without a model and without torch; `--fix` makes the sure fixes."""

from __future__ import annotations

import argparse
import gc
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from qspec import passes
from qspec.checked import Checked, check_source
from qspec.cli import wants_color
from qspec.cli.options import add_settings, settings_of
from qspec.cli.output import say, tell, unified_diff, write
from qspec.cli.recipes import read_source, recipe_files, rewrite_recipe
from qspec.diagnostics import (
    Diagnostic,
    Source,
    errors,
    render_text,
    summary,
    to_github,
    to_json,
)
from qspec.errors import InputError, UsageError
from qspec.language import understand
from qspec.language.fixes import fix
from qspec.models.registry import FAMILIES


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "files", metavar="FILE", nargs="+", help="a .qs file, a folder of them, or - for standard input"
    )
    parser.add_argument("--fix", action="store_true", help="make the fixes that are sure, in the files that are named")
    parser.add_argument("--diff", action="store_true", help="show what --fix would change, and change nothing")
    parser.add_argument("--strict", action="store_true", help="warnings are failures too")
    parser.add_argument("--format", choices=("text", "json", "github"), default="text", help="default: text")
    add_settings(parser)


def run(args: argparse.Namespace) -> int:
    settings = settings_of(args)
    checked: dict[str, Checked] = {}
    unreadable = 0
    files = recipe_files(args.files)
    if args.fix or args.diff:
        _fix_all(files, settings, args.diff)
    with _no_collections():
        for path in files:
            try:
                checked[path] = check_source(*read_source(path), settings)
            except InputError as error:
                tell(f"qspec: {error}")
                unreadable += 1
    for path in _parts(checked) - set(args.files):
        del checked[path]
    found: dict[Diagnostic, None] = {}  # each once: recipes share bases
    sources: dict[str, Source] = {}
    for one in checked.values():
        found |= dict.fromkeys(one.problems)
        sources |= one.sources
    _print(list(found), sources, args.format, len(checked))
    return InputError.exit_code if unreadable else int(bool(found if args.strict else errors(found)))


@contextmanager
def _no_collections() -> Iterator[None]:
    """Nothing of a recipe is a cycle: with many recipes, collections would take a tenth of the time."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


def _parts(checked: Mapping[str, Checked]) -> set[str]:
    """The files that are no recipes by themselves, and parts of others that were checked with them."""
    fragments = {Path(path).resolve(): path for path, one in checked.items() if one.fragment}
    if not fragments:
        return set()
    bases = {Path(base).resolve() for path, one in checked.items() for base in one.sources if base != path}
    return {path for place, path in fragments.items() if place in bases}


def _fix_all(files: list[str], settings: Mapping[str, str], only_show: bool) -> None:
    """Every file by itself; again where one was changed, which others may extend."""
    if "-" in files and not only_show:
        raise UsageError("--fix writes files", hint="name one, or show what would change: --diff")
    for _ in range(1 if only_show else 1 + len(files)):
        if not sum(_fix(path, settings, only_show) for path in files):
            break


def _fix(path: str, settings: Mapping[str, str], only_show: bool) -> bool:
    """Whether the file was changed. One that cannot be read is told of when it is checked."""
    try:
        source, problems = read_source(path)
    except InputError:
        return False
    if problems:
        return False
    fixed = fix(source, lambda text: understand(text, passes.available(), settings, FAMILIES).problems)
    count = len(fixed.fixes)
    if only_show:
        say(unified_diff(source.text, fixed.source.text, path, f"{path} (fixed)"), end="")
    elif count:
        rewrite_recipe(Path(path), fixed.source.text)
        tell(f"fixed {count} problem{'' if count == 1 else 's'} in {path}")
    return bool(count) and not only_show


def _print(found: list[Diagnostic], sources: dict[str, Source], style: str, files: int) -> None:
    if style == "json":
        say(to_json(found, sources))
    elif style == "github":
        if found:
            say(to_github(found, sources))
    else:
        if found:
            write(render_text(found, sources, color=wants_color(sys.stdout)) + "\n\n")
        if files:
            say(f"{summary(found)} in {files} recipe{'' if files == 1 else 's'}")
