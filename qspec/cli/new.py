"""`qspec new NAME`: a first recipe, to be changed."""

from __future__ import annotations

import argparse
from pathlib import Path

from qspec.cli.output import say
from qspec.diagnostics import RecipeError
from qspec.errors import InputError, UsageError
from qspec.files import write_whole
from qspec.models.registry import FAMILIES
from qspec.scaffold import FLOATS, scaffold


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="of the recipe; it is written to NAME.qs")
    parser.add_argument("--family", choices=tuple(FAMILIES), default="llada", help="default: llada")
    parser.add_argument(
        "--scheme", metavar="SCHEME", default="w4a4", help=f"w4a4 (default), w8a8, w4a16, ... or {', '.join(FLOATS)}"
    )
    parser.add_argument("--model", metavar="PATH_OR_ID", help="default: the family's instruct model")


def run(args: argparse.Namespace) -> int:
    path = Path(args.name).with_suffix(".qs")
    try:
        text = scaffold(path.stem, args.family, args.scheme, args.model)
    except RecipeError as error:  # in a recipe that is otherwise ours, it is one of the two words
        word = args.name if args.model is None else f"{args.name}, or {args.model}"
        hint = 'a name has letters, digits and `_`, at most 64, and starts with no digit; a model has no `"`'
        raise UsageError(f"this cannot be written in a recipe: {word}", hint=hint) from error
    if path.exists():
        raise InputError("there is a file already", where=str(path), hint="choose another name")
    write_whole(path, text)
    say(f"{path}\nnext: qspec plan {path}; qspec compile {path}")
    return 0
