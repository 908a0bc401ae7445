"""`qspec lsp`: the language server, which an editor starts and talks to over standard input and output."""

from __future__ import annotations

import argparse
import gc
import os
import sys

from qspec.errors import InputError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--stdio", action="store_true", help="what it always does; some editors say so")


def run(_: argparse.Namespace) -> int:
    try:
        from qspec.lsp.server import make_server
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("pygls", "lsprotocol"):
            raise
        raise InputError("the language server needs pygls", hint="pip install 'qspec[lsp]'") from None
    gc.freeze()
    gc.set_threshold(100_000, 20, 100)  # recipes make no cycles: looking for some among them stops an editor for 0.1 s
    server = make_server()
    with os.fdopen(os.dup(sys.stdin.fileno()), "rb") as source, os.fdopen(os.dup(sys.stdout.fileno()), "wb") as target:
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # nothing else may come between the messages
        server.start_io(source, target)
    return 0 if server.ended else 1  # as the protocol has it
