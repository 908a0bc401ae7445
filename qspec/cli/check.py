"""`qspec check FILE...`: every mistake in a recipe, without a model and without torch."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping

from qspec import passes
from qspec.cli import wants_color
from qspec.cli.options import add_settings, settings_of
from qspec.cli.output import read_standard, say, tell, write
from qspec.diagnostics import (
    Diagnostic,
    Source,
    errors,
    render_text,
    summary,
    to_github,
    to_json,
)
from qspec.errors import InputError
from qspec.language import find_problems
from qspec.language.parser import MAX_BYTES, decode, read
from qspec.models.registry import FAMILIES


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("files", metavar="FILE", nargs="+", help="a .qs file, or - for standard input")
    parser.add_argument("--format", choices=("text", "json", "github"), default="text", help="default: text")
    add_settings(parser)


def run(args: argparse.Namespace) -> int:
    settings = settings_of(args)
    found: dict[Diagnostic, None] = {}  # each once: recipes share bases
    sources: dict[str, Source] = {}
    unreadable = 0
    for path in args.files:
        try:
            problems, texts = _check(path, settings)
        except InputError as error:
            tell(f"qspec: {error}")
            unreadable += 1
            continue
        found |= dict.fromkeys(problems)
        sources |= texts
    _print(list(found), sources, args.format, len(args.files) - unreadable)
    return InputError.exit_code if unreadable else int(bool(errors(found)))


def _check(path: str, settings: dict[str, str]) -> tuple[tuple[Diagnostic, ...], Mapping[str, Source]]:
    source, problems = read_source(path)
    if problems:
        return tuple(problems), {source.path: source}
    return find_problems(source, passes.available(), settings, FAMILIES)


def read_source(path: str) -> tuple[Source, list[Diagnostic]]:
    """A recipe's text, of standard input for "-", and why it is none. Raises InputError where it cannot be read."""
    try:
        return decode(read_standard(MAX_BYTES + 1), "<stdin>") if path == "-" else read(path)
    except OSError as error:
        what = f"the recipe cannot be read: {error.strerror or error}"
        raise InputError(what, where=path, hint="check the path; a recipe is a `.qs` file") from None


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
