"""`qspec show RECIPE`: the recipe as it is understood."""

from __future__ import annotations

import argparse
import json
import sys

from qspec import passes
from qspec.cli import wants_color
from qspec.cli.options import add_settings, settings_of
from qspec.cli.output import say, warn
from qspec.diagnostics import render_text
from qspec.errors import UsageError
from qspec.language import load_recipe
from qspec.language.formatter import format_source
from qspec.language.printer import spec_data
from qspec.models.registry import FAMILIES


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", metavar="RECIPE", nargs="?", help="a .qs file")
    parser.add_argument("--resolved", action="store_true", help="bases flattened, params set, defaults filled in")
    parser.add_argument("--json", action="store_true", help="the resolved recipe as JSON")
    parser.add_argument("--schema", action="store_true", help="the JSON schema of --json and of the passes' parameters")
    add_settings(parser)


def run(args: argparse.Namespace) -> int:
    if args.schema:
        from qspec.language.schema import json_schema

        say(json.dumps(json_schema(passes.available()), indent=2))
        return 0
    if args.recipe is None:
        raise UsageError("show needs a RECIPE", hint="or --schema")
    loaded = load_recipe(args.recipe, passes.available(), settings_of(args), FAMILIES)
    if loaded.warnings:
        warn(render_text(loaded.warnings, loaded.sources, color=wants_color(sys.stderr)) + "\n")
    if args.json:
        say(json.dumps(spec_data(loaded.spec), indent=2))
    elif args.resolved:
        say(loaded.spec.text, end="")
    else:
        say(format_source(loaded.sources[loaded.spec.source].text, loaded.spec.source), end="")
    return 0
