"""`qspec explain [WORD]`: the longer story of a diagnostic's code, a statement, pass, format, task or setting."""

from __future__ import annotations

import argparse

from qspec.cli.output import say
from qspec.discovery import explain
from qspec.language.explanations import explanations


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "word", metavar="WORD", nargs="?", help="such as QS012, gptq, int4, gsm8k, layers; without it, codes are listed"
    )


def run(args: argparse.Namespace) -> int:
    if args.word is None:
        for code, explanation in explanations().items():
            say(f"{code}  {explanation.title}")
    else:
        say(explain(args.word))
    return 0
