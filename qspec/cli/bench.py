"""`qspec bench`: what the matrix products take on this GPU, beside cuBLAS, the GPU's limits and other packages."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

from qspec.errors import UsageError

FORMATS = ("w4a16_g128", "w4a4", "w4a8", "w8a8")
SHAPE = re.compile(r"([1-9]\d*)x([1-9]\d*)")
MODELS = ("llada", "dream")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_products(parser)
    parser.add_argument("--no-peers", action="store_true", help="time only qspec's kernels")
    parser.add_argument(
        "--results", action="append", metavar="FILE", help="show these bench.json of earlier runs instead of measuring"
    )
    parser.add_argument("--document", metavar="FILE", help="Markdown file to put the tables into, between its marks")
    parser.add_argument(
        "--out", metavar="DIR", default="build/bench", help="folder of the results (default: %(default)s)"
    )


def add_products(parser: argparse.ArgumentParser) -> None:
    """What is timed: formats, shapes, numbers of tokens."""
    parser.add_argument("--format", action="append", choices=FORMATS, help="as often as wanted (default: all)")
    parser.add_argument(
        "--shape",
        action="append",
        metavar="NxK|MODEL",
        help=f"output x input channels, or the merged linears of {' or '.join(MODELS)} (default: llada)",
    )
    parser.add_argument(
        "--tokens", metavar="LIST", default="1,16,64,256,1024,4096", help="numbers of tokens (default: %(default)s)"
    )
    parser.add_argument("--quiet", action="store_true", help="show no progress")


def run(args: argparse.Namespace) -> int:
    shapes, tokens = shapes_of(args.shape or ["llada"]), tokens_of(args.tokens)

    from qspec.bench import run_bench, write_bench
    from qspec.bench.data import read
    from qspec.bench.render import fill, markdown
    from qspec.cli.terminal import Terminal
    from qspec.progress import Quiet

    progress = Quiet() if args.quiet else Terminal()
    if args.results:
        bench = read([Path(file) for file in args.results])
    else:
        bench = run_bench(args.format or FORMATS, shapes, tokens, not args.no_peers, progress)
    folder = Path(args.out)
    write_bench(bench, folder)
    if args.document:
        fill(Path(args.document), bench)
    print(markdown(bench))
    print(f"bench: {folder / 'bench.md'}")
    return 0


def shapes_of(texts: Sequence[str]) -> list[tuple[int, int]]:
    """`12288x4096`, or a model's name for its merged linears."""
    found: list[tuple[int, int]] = []
    for text in texts:
        if text in MODELS:
            from qspec.bench.data import DREAM, LLADA

            found += {"llada": LLADA, "dream": DREAM}[text]
        elif match := SHAPE.fullmatch(text):
            found.append((int(match[1]), int(match[2])))
        else:
            hint = f"output x input channels such as 12288x4096, or {' or '.join(MODELS)}"
            raise UsageError(f"{text!r} is not a shape", hint=hint)
    return found


def tokens_of(text: str) -> list[int]:
    """`1,16,64` as numbers."""
    parts = text.split(",")
    if not all(re.fullmatch(r"[1-9]\d{0,5}", part.strip()) for part in parts):
        raise UsageError(f"--tokens {text!r} is not a list of numbers of tokens", hint="such as 1,16,64")
    return [int(part) for part in parts]
