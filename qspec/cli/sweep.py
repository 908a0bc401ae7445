"""`qspec sweep RECIPE|ARTIFACT`: the texts of both models over steps, blocks, remasking and thresholds."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from qspec.cli.output import flush, near, say
from qspec.errors import UsageError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("target", metavar="RECIPE|ARTIFACT", help="a compiled model, or a .qs file to compile first")
    parser.add_argument("--model", metavar="PATH_OR_ID", help="the unquantized checkpoint")
    parser.add_argument("--out", metavar="DIR", help="output folder (default: build/sweep/<name>/)")
    parser.add_argument("--task", metavar="NAME", help="a task of the recipe (default: the first that is denoised)")
    parser.add_argument("--limit", type=int, default=16, metavar="N", help="texts of it (default: 16)")
    parser.add_argument(
        "--length", type=int, metavar="N", help="tokens of a text, with steps in proportion (default: the task's)"
    )
    parser.add_argument(
        "--steps", default="1,0.5,0.25,0.125", metavar="LIST", help="shares of the task's steps (default: %(default)s)"
    )
    parser.add_argument("--block", default="", metavar="LIST", help="tokens of a block")
    parser.add_argument("--remasking", default="", metavar="LIST", help="low_confidence, random, sequential")
    parser.add_argument("--threshold", default="", metavar="LIST", help="confidences for parallel commits")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--json", action="store_true", help="print what sweep.json holds")
    parser.add_argument("--quiet", action="store_true", help="show no progress")


def run(args: argparse.Namespace) -> int:
    steps = _values("--steps", args.steps, float)
    if not steps or min(steps) <= 0 or max(steps) > 1:
        raise UsageError(f"--steps takes shares above 0 and up to 1, not {args.steps!r}")
    if args.limit < 1:
        raise UsageError(f"--limit is {args.limit}; it must be at least 1")
    if args.length is not None and args.length < 1:
        raise UsageError(f"--length is {args.length}; it must be at least 1")
    others = {
        "block": _values("--block", args.block, int),
        "remasking": _values("--remasking", args.remasking, str),
        "threshold": _values("--threshold", args.threshold, float),
    }

    from qspec.artifact import require_outside_artifacts
    from qspec.cli.terminal import Terminal
    from qspec.files import require_folder
    from qspec.progress import Quiet
    from qspec.report.make import forget_batches
    from qspec.sweep import write_sweep
    from qspec.sweep.run import Grid, run_sweep

    progress = Quiet() if args.quiet else Terminal()
    artifact, files = _artifact(args, progress)
    folder = Path(args.out) if args.out else Path("build/sweep") / artifact.resolve().name
    require_folder(folder)
    require_outside_artifacts(folder / "sweep.json")
    grid = Grid(steps, {name: values for name, values in others.items() if values}, args.task, args.limit, args.length)
    data = run_sweep(artifact, grid, args.model, args.device, files, progress)
    say(json.dumps(data.as_json()) if args.json else _table(data))
    flush()  # before what may fail
    write_sweep(folder, data)
    forget_batches(artifact)
    if not args.json:
        say(f"\nsweep: {near(folder / 'sweep.html')}")
    return 0


def _artifact(args: argparse.Namespace, progress: Any) -> tuple[Path, Path]:
    """The artifact, and where its recipe's paths start; a recipe is compiled."""
    target = Path(args.target)
    if target.is_dir():
        return target, Path()
    from qspec.compiler import CompileOptions
    from qspec.compiler import compile as compile_recipe

    options = CompileOptions(evaluate=False)
    return compile_recipe(target, args.model, None, args.device, options=options, progress=progress).path, target.parent


def _values(option: str, text: str, kind: Callable[[str], Any]) -> tuple[Any, ...]:
    """Values with commas between them. Raises UsageError."""
    try:
        return tuple(dict.fromkeys(kind(one.strip()) for one in text.split(",") if one.strip()))
    except ValueError:
        raise UsageError(f"{option} takes values with commas between them, not {text!r}") from None


def _table(data: Any) -> str:
    """Headline, and a line for each setting."""
    lines = [data.headline, f"Bits per weight: {data.bits}.", ""]
    lines.append(f"  {'settings':<36}{'passes':>8}{'unquantized':>13}{'quantized':>11}{'expected':>10}  finding")
    for cell in data.cells:
        name = ", ".join(f"{key} {value}" for key, value in cell.settings.items())
        shares = (cell.unquantized, cell.quantized, cell.expected)
        numbers = "".join(f"{100 * share:>{width}.1f} %" for share, width in zip(shares, (11, 9, 8), strict=True))
        lines.append(f"  {name:<36}{cell.passes:>8.1f}{numbers}  {cell.finding}")
    return "\n".join([*lines, *(f"not run: {one}" for one in data.skipped)])
