"""`python -m qspec`, and the command `qspec`: deaf to nothing, from the first import on."""

from __future__ import annotations

import os
import signal
import sys


def main() -> int:
    """Runs the command. An interrupt ends it without a traceback also while modules are still being loaded."""
    heard = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # else somebody wants it ignored
    if heard:
        signal.signal(signal.SIGINT, _end)
    from qspec.cli import main as run

    if heard:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return run()
    finally:
        if heard:
            signal.signal(signal.SIGINT, _end)


def _end(*_: object) -> None:
    os.write(2, b"qspec: interrupted\n")
    os._exit(130)


if __name__ == "__main__":
    sys.exit(main())
