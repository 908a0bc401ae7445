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


def settings_of(args: argparse.Namespace) -> dict[str, str]:
    """Raises UsageError where a --set is not NAME=VALUE."""
    settings = {}
    for text in args.set:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise UsageError(f"--set takes NAME=VALUE, not {text!r}")
        settings[name] = value
    return settings
