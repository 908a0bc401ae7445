"""`qspec inspect CHECKPOINT`: where the activation outliers are, how large, on how many tokens, by mask ratio."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from qspec.cli.output import flush, say
from qspec.errors import UsageError, visible

if TYPE_CHECKING:
    from qspec.inspect import Inspection

TABLE_WIDTH = 100


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "checkpoint",
        metavar="CHECKPOINT",
        help="a checkpoint folder, hub id, bundled stand-in such as tiny-llada, or compiled model",
    )
    parser.add_argument("--out", metavar="DIR", help="output folder (default: build/inspect/<name>/)")
    parser.add_argument("--json", action="store_true", help="print what inspect.json holds")
    parser.add_argument(
        "--text", metavar="NAME_OR_FILE", default="wikitext2", help="what the model reads (default: wikitext2)"
    )
    parser.add_argument("--samples", type=int, default=8, metavar="N", help="windows of the text (default: 8)")
    parser.add_argument("--length", type=int, metavar="N", help="tokens in each (default: 512, or the model's most)")
    parser.add_argument(
        "--ratios", default="0,0.25,0.5,0.75,1", metavar="LIST", help="shares of masked tokens (default: %(default)s)"
    )
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quiet", action="store_true", help="show no progress")


def run(args: argparse.Namespace) -> int:
    ratios = _ratios(args.ratios)
    _at_least("--samples", args.samples, 1)
    _at_least("--length", args.length, 1)
    _at_least("--seed", args.seed, 0)

    from qspec.artifact import require_outside_artifacts
    from qspec.cli.terminal import Terminal
    from qspec.files import require_folder
    from qspec.inspect import MaskedText, inspect, write_inspection
    from qspec.progress import Quiet

    folder = Path(args.out) if args.out else Path("build/inspect") / Path(args.checkpoint).resolve().name
    require_folder(folder)
    require_outside_artifacts(folder / "inspect.json")
    wanted = MaskedText(args.text, args.samples, args.length, ratios, args.seed)
    data = inspect(args.checkpoint, wanted, device=args.device, progress=Quiet() if args.quiet else Terminal())
    if args.json:
        say(json.dumps(data.as_json()))
    else:
        _print(data)
    flush()  # before what may fail
    write_inspection(folder, data)
    if not args.json:
        say(f"\ninspection: {folder / 'inspect.html'}")
    return 0


def _ratios(text: str) -> tuple[float, ...]:
    """Shares in [0, 1], each once. Raises UsageError."""
    try:
        ratios = tuple(float(one) for one in text.split(","))
    except ValueError:
        raise UsageError(f"--ratios takes numbers with commas between them, not {text!r}") from None
    wrong = [ratio for ratio in ratios if not 0 <= ratio <= 1]
    if wrong:
        raise UsageError(f"a mask ratio lies between 0 and 1; {wrong[0]:g} does not", hint="--ratios 0,0.5,1")
    if len(set(ratios)) < len(ratios):
        raise UsageError(f"--ratios {text} names a ratio twice")
    return ratios


def _at_least(option: str, value: int | None, least: int) -> None:
    if value is not None and value < least:
        raise UsageError(f"{option} must be {least} or more, not {value}")


def _print(data: Inspection) -> None:
    """Headline and table; the table in colour on a terminal, plain elsewhere."""
    from qspec.inspect.summary import aligned, details, headline, legend, table

    say("\n".join([headline(data), *details(data)]), end="\n\n")
    rows = table(data)
    if sys.stdout.isatty():
        _print_rich(rows)
    else:
        say("\n".join(aligned(rows)))
    say(f"\n{legend(data)}")


def _print_rich(rows: list[tuple[str, ...]]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from qspec.inspect.summary import LEFT

    styles = {"massive": "bold red", "normal": "cyan", "none": "dim"}
    head, *body = rows
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for index, name in enumerate(head):
        table.add_column(name, justify="left" if index in LEFT else "right", no_wrap=True)
    for cells in body:
        table.add_row(*(Text(visible(cell), style=styles.get(cell, "")) for cell in cells))
    console = Console(highlight=False)
    console.width = max(console.width, TABLE_WIDTH)  # a narrow terminal wraps lines; nothing is cut off
    console.print(table)
