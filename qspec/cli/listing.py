"""`qspec list KIND`: what there is to write in a recipe, a line each."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict

from qspec.cli.output import say
from qspec.discovery import KINDS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("kind", metavar="KIND", choices=tuple(KINDS), help=", ".join(KINDS))
    parser.add_argument("--json", action="store_true", help="as a list of {name, about}")


def run(args: argparse.Namespace) -> int:
    found = list(KINDS[args.kind]())
    if args.json:
        say(json.dumps([asdict(one) for one in found], indent=2))
        return 0
    width = max(len(one.name) for one in found)
    say("\n".join(f"{one.name.ljust(width)}  {one.about}".rstrip() for one in found))
    return 0
