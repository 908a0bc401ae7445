"""`qspec plan RECIPE`: every decision, from config.json alone."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from qspec.cli.options import add_settings, settings_of
from qspec.cli.output import say
from qspec.plan.data import plan_data
from qspec.plan.generating import CANVAS, TextSizes
from qspec.plan.text import render
from qspec.planned import planned


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", metavar="RECIPE", help="a .qs file")
    parser.add_argument(
        "--model",
        metavar="PATH_OR_ID",
        help="folder with a config.json, hub id, or bundled stand-in such as tiny-llada, instead of the recipe's model",
    )
    parser.add_argument("--batch", type=int, default=1, metavar="N", help="texts generated at once (default: 1)")
    parser.add_argument(
        "--canvas", type=int, metavar="N", help=f"tokens of prompt and text (default: {CANVAS}, or all of the model's)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    add_settings(parser)


def run(args: argparse.Namespace) -> int:
    found = planned(Path(args.recipe), args.model, settings_of(args))
    texts = TextSizes.of(found.plan.shape, args.batch, args.canvas)
    if args.json:
        say(json.dumps(plan_data(found.plan, texts), indent=1))
        return 0
    say(render(found.plan, texts))
    return 0
