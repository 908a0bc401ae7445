"""Options that several commands share."""

from __future__ import annotations

import argparse

from qspec.errors import UsageError


def add_settings(parser: argparse.ArgumentParser) -> None:
    """--set k=v, as often as wanted."""
    parser.add_argument(
        "--set", metavar="NAME=VALUE", action="append", default=[], help="value of one of the recipe's parameters"
    )


def add_run_code(parser: argparse.ArgumentParser) -> None:
    """--run-code."""
    parser.add_argument(
        "--run-code", action="store_true", help="score tasks that run programs which the model wrote, in a sandbox"
    )


QUICK = 16


def add_reference(parser: argparse.ArgumentParser) -> None:
    """--no-reference: `reference` of the arguments."""
    parser.add_argument(
        "--no-reference",
        dest="reference",
        action="store_false",
        help="leave out the NELBO of the same schemes only rounded (RTN): another NELBO of two models",
    )


def add_limit(parser: argparse.ArgumentParser) -> None:
    """--limit N and --quick: `limit` of the arguments."""
    group = parser.add_mutually_exclusive_group()
    group.add_argument(
        "--limit", type=_positive, metavar="N", help="measure at most N items of a task and samples of a text"
    )
    group.add_argument(
        "--quick", dest="limit", action="store_const", const=QUICK, help=f"to try things: the same as --limit {QUICK}"
    )


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def settings_of(args: argparse.Namespace) -> dict[str, str]:
    """Raises UsageError where a --set is not NAME=VALUE."""
    settings = {}
    for text in args.set:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise UsageError(f"--set takes NAME=VALUE, not {text!r}")
        settings[name] = value
    return settings
