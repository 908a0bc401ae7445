"""`qspec eval ARTIFACT`: measure a compiled model again, against the checkpoint that it came from."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

from qspec.cli.options import add_limit, add_reference, add_run_code
from qspec.cli.output import flush, say


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("artifact", metavar="ARTIFACT", help="a compiled model")
    parser.add_argument("--model", metavar="PATH_OR_ID", help="the unquantized checkpoint, if it has moved")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument(
        "--files", metavar="DIR", default=".", help="where the recipe's own file paths start (default: here)"
    )
    add_limit(parser)
    add_reference(parser)
    parser.add_argument(
        "--report", type=Path, metavar="DIR", help="write the report there and leave the artifact's as it is"
    )
    add_run_code(parser)
    parser.add_argument("--download", action="store_true", help="fetch missing data from the hub")
    parser.add_argument("--json", action="store_true", help="print what report.json holds")
    parser.add_argument("--quiet", action="store_true", help="show no progress")


def run(args: argparse.Namespace) -> int:
    from qspec.cli.terminal import Terminal
    from qspec.errors import GATE_FAILED
    from qspec.evaluate import Measuring
    from qspec.progress import Quiet
    from qspec.report import has_full_report, replace_report, report_json, write_report
    from qspec.report.make import forget_batches, measure_report
    from qspec.report.text import summary

    folder = Path(args.artifact)
    progress = Quiet() if args.quiet else Terminal()
    elsewhere, kept = args.report, False
    if args.limit is not None and elsewhere is None and has_full_report(folder):
        kept = True
        progress.note("limited: the results are printed, and the full report there stays as it is (--report DIR)")
    writable = not folder.is_dir() or os.access(folder, os.W_OK | os.X_OK)
    if not writable and elsewhere is None:
        progress.note(f"{folder} cannot be written: the results are printed, and the report there stays as it is")
    how = Measuring(args.limit, args.run_code, args.download, keep=writable, reference=args.reference)
    data = measure_report(folder, args.model, args.device, Path(args.files), progress, how=how)
    say(json.dumps(report_json(data)) if args.json else summary(data))
    flush()  # before what may fail
    if elsewhere is not None:
        write_report(elsewhere, data)
    elif not kept:
        replace_report(folder, data)
    forget_batches(folder)
    if not args.json and not kept:
        say(f"\nreport: {(elsewhere or folder / 'report') / 'report.html'}")
    return GATE_FAILED if data.passed is False else 0
