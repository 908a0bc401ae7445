"""Masked against clean calibration text: NELBO and accuracy of GPTQ at W3, W2 and W4A4, over several seeds.

    python examples/paper_tables/masking.py --model tiny-llada --model tiny-dream --jobs 2

The recipes are in recipes/masking. A seed draws the calibration windows, their masks, and the masks of the evaluation:
all recipes of one seed are measured alike. OUT gets masking.json and masking.md; finished cells are not made again.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

from cells import Cell
from run import collect, run_cells
from tables import first_metrics

from qspec import resources
from qspec.files import write_whole

SHARES = (("clean", "0.0"), ("masked", "1.0"))


SETTINGS = ("w4a4", "w3a16", "w2a16")  # the fewest bits last


def recipes(settings: Sequence[str] = SETTINGS) -> tuple[Cell, ...]:
    """The recipes that are compared."""
    folder = resources.recipes() / "masking"
    return tuple(Cell(name, "GPTQ", name, folder / f"gptq_{name}.qs") for name in settings)


def scores(report: dict[str, Any]) -> tuple[float, float]:
    """(NELBO, mean accuracy over the tasks) of the quantized model."""
    metrics = first_metrics(report["metrics"])
    losses = [m["quantized"] for m in metrics if m["metric"] == "nelbo"]
    shares = [m["quantized"] for m in metrics if m["metric"] != "nelbo"]
    return losses[0], sum(shares) / len(shares)


def spread(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation."""
    mean = sum(values) / len(values)
    if len(values) < 2:
        return mean, 0.0
    return mean, math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1))


def table(
    out: Path, models: Sequence[str], seeds: int, limit: int | None = None
) -> tuple[str, list[dict[str, object]]]:
    """Markdown, and the rows behind it, of the cells that are finished with this limit."""
    lines = ["| model | recipe | calibration | NELBO | accuracy, % | seeds |", "|---|---|---|---|---|---|"]
    rows: list[dict[str, object]] = []
    for model, cell, (name, share) in product(models, recipes(), SHARES):
        found = []
        for seed in range(seeds):
            folder = out / Path(model).name / name / str(seed)
            found += [scores(one) for one in collect([cell], folder, limit, {"masked": share, "seed": str(seed)})]
        if not found:
            continue
        losses, shares = [loss for loss, _ in found], [100 * mean for _, mean in found]
        (loss, loss_sd), (share, share_sd) = spread(losses), spread(shares)
        lines.append(
            f"| {Path(model).name} | {cell.setting.upper()} | {name} | {loss:.4f} ± {loss_sd:.4f} "
            f"| {share:.1f} ± {share_sd:.1f} | {len(found)} |"
        )
        rows.append({"model": model, "recipe": cell.name, "calibration": name, "nelbo": losses, "accuracy": shares})
    return "\n".join(lines) + "\n\nMean ± standard deviation over the seeds.\n", rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--model", action="append", help="checkpoint folder, hub id or bundled stand-in; may be repeated"
    )
    parser.add_argument("--bits", nargs="+", choices=SETTINGS, default=SETTINGS, help="the recipes (default: all)")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--limit", type=int, metavar="N", help="at most N items of a task and samples of a text")
    parser.add_argument("--jobs", type=int, default=1, help="processes (default: 1)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--out", type=Path, default=Path("build/masking"))
    parser.add_argument("--part", help=argparse.SUPPRESS)  # K/N: every N-th piece of the work, of one process
    args = parser.parse_args()

    models = args.model or ["tiny-llada", "tiny-dream"]
    if args.jobs > 1:
        options = [option for model in models for option in ("--model", model)]
        options += ["--seeds", str(args.seeds), "--device", args.device, "--out", str(args.out), "--bits", *args.bits]
        options += [] if args.limit is None else ["--limit", str(args.limit)]
        command = [sys.executable, __file__, *options, "--part"]
        running = [subprocess.Popen([*command, f"{k}/{args.jobs}"]) for k in range(args.jobs)]
        codes = [process.wait() for process in running]
        if any(codes):
            sys.exit("a process failed; what is finished is kept, and the same command goes on")
    else:
        part, parts = (int(word) for word in (args.part or "0/1").split("/"))
        work = list(product(models, SHARES, range(args.seeds), recipes(args.bits)))
        for model, (name, share), seed, cell in work[part::parts]:
            out = args.out / Path(model).name / name / str(seed)
            run_cells(model, [cell], out, args.device, {"masked": share, "seed": str(seed)}, args.limit)
    if args.part is None:
        text, rows = table(args.out, models, args.seeds, args.limit)
        write_whole(args.out / "masking.md", text)
        write_whole(args.out / "masking.json", json.dumps(rows, indent=1) + "\n")
        print(text)


if __name__ == "__main__":
    main()
