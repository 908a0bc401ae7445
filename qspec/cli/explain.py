"""`qspec explain [CODE]`: the longer story of a diagnostic, with a bad and a good recipe."""

from __future__ import annotations

import argparse

from qspec.cli.output import say
from qspec.diagnostics import closest
from qspec.errors import UsageError
from qspec.language.explanations import explanations


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("code", metavar="CODE", nargs="?", help="such as QS012; without it, all codes are listed")


def run(args: argparse.Namespace) -> int:
    known = explanations()
    if args.code is None:
        for code, explanation in known.items():
            say(f"{code}  {explanation.title}")
        return 0
    code = args.code.upper()
    if code not in known:
        guess = closest(code, known)
        hint = f"did you mean {guess}?" if guess else "qspec explain lists all codes"
        raise UsageError(f"there is no diagnostic {args.code!r}", hint=hint)
    say(known[code].render())
    return 0
