"""`qspec report ARTIFACT`: render the report again from report.json, without measuring anything.

More artifacts, or results given by `--with`, are compared with it: a table, and a plot of losses against bits. What was
compared before stays until something else takes its place.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from qspec.cli.output import say


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("artifact", metavar="ARTIFACT", help="a compiled model with a report")
    parser.add_argument(
        "others", nargs="*", default=[], type=Path, metavar="OTHER", help="others of the same checkpoint, to compare"
    )
    parser.add_argument(
        "--with",
        dest="results",
        action="append",
        default=[],
        type=Path,
        metavar="RESULTS",
        help="show other recipes' results too: a report.json, or a grid's results.json; may be repeated",
    )


def run(args: argparse.Namespace) -> int:
    from qspec.artifact import verify_report_data
    from qspec.manifest import Manifest
    from qspec.report import ReportData, replace_report
    from qspec.report.compare import compare

    folder = Path(args.artifact)
    Manifest.read(folder)
    data = ReportData.read(verify_report_data(folder))
    results = [*(verify_report_data(other) for other in args.others), *args.results]
    replace_report(folder, compare(data, results) if results else data)
    say(folder / "report" / "report.html")
    return 0
