"""`qspec complete FILE LINE:COLUMN`: the words that may stand there, for editors."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict

from qspec import passes
from qspec.cli.output import say
from qspec.cli.recipes import read_source
from qspec.errors import UsageError
from qspec.language.completion import Names, completions
from qspec.language.merge import merge
from qspec.models.registry import FAMILIES


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", help="a .qs file, or - for standard input")
    parser.add_argument("place", metavar="LINE:COLUMN", help="both from 1")
    parser.add_argument("--json", action="store_true", help="as a list of {word, doc, kind, detail}")


def run(args: argparse.Namespace) -> int:
    line, _, column = args.place.partition(":")
    if not (line.isdecimal() and column.isdecimal() and int(line) and int(column)):
        raise UsageError(f"{args.place!r} is no place", hint="write it as LINE:COLUMN, such as 12:3")
    source, _ = read_source(args.file)
    offset = source.line_start(min(int(line), source.text.count("\n") + 2)) + int(column) - 1
    found = completions(source, offset, Names.of(merge(source), passes.available(), FAMILIES))
    if args.json:
        say(json.dumps([asdict(one) for one in found]))
    elif found:
        width = max(len(one.word) for one in found)
        say("\n".join(f"{one.word.ljust(width)}  {one.doc}".rstrip() for one in found))
    return 0
