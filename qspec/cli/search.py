"""`qspec search RECIPE`: a scheme for every layer within a budget, written as a recipe."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from qspec.cli.options import add_settings, settings_of
from qspec.cli.output import flush, say
from qspec.errors import UsageError

if TYPE_CHECKING:
    from qspec.search.run import Outcome


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", metavar="RECIPE", help="a .qs file with a `search` block")
    parser.add_argument(
        "--budget",
        metavar="BUDGET",
        help='what may not be exceeded, such as "4.25 bits" (per weight in the blocks), instead of the recipe\'s',
    )
    parser.add_argument("--out", metavar="FILE.qs", help="the found recipe (default: build/search/<recipe>/)")
    parser.add_argument(
        "--sweep", metavar="BUDGET", action="append", default=[], help="a further budget; may be repeated"
    )
    parser.add_argument(
        "--model",
        metavar="PATH_OR_ID",
        help="checkpoint folder, hub id, or bundled stand-in such as tiny-llada, instead of the recipe's",
    )
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="processes, or with --ray actors (default: on a CPU one a core, as far as memory holds them; else 1)",
    )
    parser.add_argument("--ray", metavar="ADDRESS", help='a Ray cluster\'s address, or "local"')
    parser.add_argument("--resume", action="store_true", help="refuse to start from nothing")
    add_settings(parser)
    parser.add_argument("--no-standin", action="store_true", help="a missing checkpoint is an error")
    parser.add_argument("--quiet", action="store_true", help="print errors only")


def run(args: argparse.Namespace) -> int:
    if args.workers is not None and args.workers < 1:
        raise UsageError(f"--workers is {args.workers}; it must be at least 1")
    if args.out and not args.out.endswith(".qs"):
        raise UsageError(f"--out names {args.out}", hint="a recipe is a .qs file")

    from qspec.cli.terminal import Terminal
    from qspec.progress import Quiet
    from qspec.search.report import write_report
    from qspec.search.run import SearchOptions, search

    options = SearchOptions(
        args.budget, args.sweep, args.workers, args.ray, resume=args.resume, standin=not args.no_standin
    )
    outcome = search(
        args.recipe,
        args.model,
        args.out,
        args.device,
        settings=settings_of(args),
        options=options,
        progress=Quiet() if args.quiet else Terminal(),
    )
    if not args.quiet:
        say(render(outcome))
        flush()  # before what may fail
    write_report(outcome)
    if not args.quiet:
        say(f"\nreport: {outcome.folder / 'search.html'}")
    return 0


def render(outcome: Outcome) -> str:
    """The result as plain text."""
    width = max(len(found.budget) for found in outcome.found)
    lines = [
        "bits per weight in the blocks, which a budget of bits counts, and in the whole model:",
        f"  {'budget':<{width}}  {'blocks':>7}  {'model':>7}"
        f"  {'predicted':>9}  {'measured':>9}  {'uniform':>9}  recipe",
    ]
    for found in outcome.found:
        losses = (found.predicted, found.loss, found.measured_of("uniform"))
        shown = "  ".join(f"{'-' if loss is None else f'{loss:.4g}':>9}" for loss in losses)
        lines.append(f"  {found.budget:<{width}}  {found.bits:>7.4f}  {found.model_bits:>7.4f}  {shown}  {found.path}")
    return "\n".join(lines)
