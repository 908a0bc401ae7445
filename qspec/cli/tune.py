"""`qspec tune`: the fastest tile sizes of the GEMMs on this GPU, kept for later runs."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from qspec.cli.bench import FORMATS, add_gemm_arguments, shapes_of, tokens_of
from qspec.cli.output import say
from qspec.errors import UsageError

TOKENS = "8,16,64,256,1024,4096,8192"  # the last is the bucket of `full_sequence`, for budgets


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_gemm_arguments(parser, TOKENS)
    parser.add_argument(
        "--workers", type=int, metavar="N", help="processes that compile (default: the processor's cores)"
    )
    parser.add_argument("--out", metavar="FILE", help="table to write to (default: this user's, which qspec reads)")


def run(args: argparse.Namespace) -> int:
    shapes, tokens = shapes_of(args.shape or ["llada"]), tokens_of(args.tokens or TOKENS)
    workers = os.cpu_count() or 1 if args.workers is None else args.workers
    if workers < 1:
        raise UsageError("--workers is a number above 0")

    import torch

    from qspec.bench import tune
    from qspec.cli.terminal import Terminal
    from qspec.kernels import tuned
    from qspec.progress import Quiet

    if args.out:
        tuned.require_table(Path(args.out))
    entries = tune(args.format or FORMATS, shapes, tokens, workers, Quiet() if args.quiet else Terminal())
    gpu = torch.cuda.get_device_name()
    path = Path(args.out) if args.out else tuned.own_file(gpu)
    tuned.write(path, gpu, entries)
    say(f"{len(entries)} GEMMs measured on {gpu}: {path}")
    return 0
