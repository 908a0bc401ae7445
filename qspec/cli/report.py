"""`qspec report ARTIFACT`: render the report again from report.json, without measuring anything."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("artifact", metavar="ARTIFACT", help="a compiled model with a report")


def run(args: argparse.Namespace) -> int:
    from qspec.artifact import Manifest
    from qspec.report import ReportData, replace_report

    folder = Path(args.artifact)
    Manifest.read(folder)
    replace_report(folder, ReportData.read(folder / "report" / "report.json"))
    print(folder / "report" / "report.html")
    return 0
