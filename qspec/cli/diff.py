"""`qspec diff OLD NEW`: what changed, by meaning."""

from __future__ import annotations

import argparse
import json

from qspec.cli.options import add_settings, settings_of
from qspec.cli.output import say

DIFFERS = 2


def add_arguments(parser: argparse.ArgumentParser) -> None:
    what = "a recipe, REVISION:PATH in git, a compiled model's folder, or a report.json"
    parser.add_argument("old", metavar="OLD", help=what)
    parser.add_argument("new", metavar="NEW", help="the same")
    parser.add_argument(
        "--model",
        metavar="PATH_OR_ID",
        help="folder with a config.json, hub id, or bundled stand-in such as tiny-llada, instead of the recipes' own",
    )
    style = parser.add_mutually_exclusive_group()
    style.add_argument("--json", action="store_true", help="print JSON")
    style.add_argument("--markdown", action="store_true", help="print Markdown, for a pull request")
    parser.add_argument(
        "--exit-code",
        action="store_true",
        help=f"exit {DIFFERS} where they differ; so does a wrong command line, which prints nothing to standard output",
    )
    add_settings(parser)


def run(args: argparse.Namespace) -> int:
    from qspec.difference import diff, markdown, text

    found = diff(args.old, args.new, args.model, settings_of(args))
    if args.json:
        say(json.dumps(found.as_json(), indent=1))
    else:
        say(markdown.render(found) if args.markdown else text.render(found), end="" if args.markdown else "\n")
    return DIFFERS if args.exit_code and found else 0
