"""`qspec fmt FILE...`: the canonical format, in place; `--check` only tells, `--diff` shows."""

from __future__ import annotations

import argparse
from pathlib import Path

from qspec.cli.output import read_standard, say, unified_diff
from qspec.cli.recipes import recipe_files, write_recipe
from qspec.diagnostics import RecipeError
from qspec.errors import InputError
from qspec.language.formatter import format_source
from qspec.language.parser import MAX_BYTES, decode, read_bytes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "files", metavar="FILE", nargs="+", help="a .qs file, a folder of them, or - for standard streams"
    )
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 where a file would change")
    parser.add_argument("--diff", action="store_true", help="change nothing; print what would change")


def run(args: argparse.Namespace) -> int:
    changed = 0
    for path in recipe_files(args.files):
        text, after = _formatted(path)
        differs = text != after
        changed += differs
        if args.diff:
            say(unified_diff(text, after, path, f"{path} (formatted)"), end="")
        if path == "-":
            if not (args.check or args.diff):
                say(after, end="")
        elif differs and not (args.check or args.diff):
            write_recipe(Path(path), after)
            say(f"formatted {path}")
        elif differs and args.check:
            say(f"would format {path}")
    return int(args.check and changed > 0)


def _formatted(path: str) -> tuple[str, str]:
    """The text as it is (bytes that are no recipe raise RecipeError) and in canonical format."""
    try:
        data = read_standard(MAX_BYTES + 1) if path == "-" else read_bytes(path)
    except OSError as error:
        raise InputError(f"the recipe cannot be read: {error.strerror or error}", where=path) from None
    source, problems = decode(data, "<stdin>" if path == "-" else path)
    if problems:
        raise RecipeError(problems, {source.path: source})
    return data.decode("utf-8"), format_source(source.text, source.path)
