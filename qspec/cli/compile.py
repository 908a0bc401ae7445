"""`qspec compile RECIPE`: the main job."""

from __future__ import annotations

import argparse

from qspec.cli.options import add_limit, add_reference, add_run_code, add_settings, settings_of
from qspec.cli.output import near, say
from qspec.errors import GATE_FAILED


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", metavar="RECIPE", help="a .qs file")
    parser.add_argument(
        "--model",
        metavar="PATH_OR_ID",
        help="checkpoint folder, hub id, or bundled stand-in such as tiny-llada, instead of the recipe's",
    )
    parser.add_argument("--out", metavar="DIR", help="output folder (default: build/<recipe>/)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    add_settings(parser)
    parser.add_argument("--locked", action="store_true", help="refuse anything but what NAME.lock says")
    parser.add_argument(
        "--locked=strict", dest="locked", action="store_const", const="strict", help="on another machine too"
    )
    add_run_code(parser)
    parser.add_argument("--no-eval", action="store_true", help="leave evaluation and report out")
    add_limit(parser)
    add_reference(parser)
    parser.add_argument("--download", action="store_true", help="fetch missing checkpoints and data from the hub")
    parser.add_argument("--no-standin", action="store_true", help="a missing checkpoint is an error")
    parser.add_argument("--quiet", action="store_true", help="print errors only")


def run(args: argparse.Namespace) -> int:
    from qspec.cli.terminal import Terminal
    from qspec.compiler import CompileOptions
    from qspec.compiler import compile as compile_recipe
    from qspec.progress import Quiet

    progress = Quiet() if args.quiet else Terminal()
    options = CompileOptions(
        locked=args.locked,
        evaluate=not args.no_eval,
        run_code=args.run_code,
        download=args.download,
        standin=not args.no_standin,
        limit=args.limit,
        reference=args.reference,
    )
    artifact = compile_recipe(
        args.recipe,
        args.model,
        args.out,
        args.device,
        settings=settings_of(args),
        options=options,
        progress=progress,
    )
    if not args.quiet:
        if artifact.report is not None:
            from qspec.report.text import summary

            say(summary(artifact.report), end="\n\n")
        say(f"artifact: {near(artifact.path)}")
        if artifact.report is not None:
            say(f"report:   {near(artifact.path / 'report/report.html')}")
    return GATE_FAILED if artifact.report is not None and artifact.report.passed is False else 0
