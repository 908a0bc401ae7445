"""`qspec plan RECIPE`: every decision, from config.json alone, and what compiling, generating and measuring take."""

from __future__ import annotations

import argparse
import gc
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from qspec.cli.options import add_limit, add_settings, settings_of
from qspec.cli.output import say
from qspec.effort import advice, effort
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
    add_limit(parser)
    add_settings(parser)


@contextmanager
def _uncollected() -> Iterator[None]:
    """The records of 24,000 linears hold no cycles, and looking for some would take a third of the plan's time."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@_uncollected()
def run(args: argparse.Namespace) -> int:
    found = planned(Path(args.recipe), args.model, settings_of(args))
    texts = TextSizes.of(found.plan.shape, args.batch, args.canvas)
    plan, evaluation = found.plan, found.plan.spec.evaluate
    measured = None
    if not found.standin and (evaluation.nelbo or evaluation.tasks):  # a stand-in has tasks of its own
        measured = effort(plan, evaluation if args.limit is None else evaluation.limited(args.limit))
    if args.json:
        say(json.dumps(plan_data(plan, texts) | {"evaluate": measured and measured.as_json()}, indent=1))
        return 0
    more = {} if measured is None else {"evaluate needs": str(measured)}
    if measured and (wise := advice(plan, evaluation, measured)):
        more[""] = wise
    say(render(plan, texts, more))
    return 0
