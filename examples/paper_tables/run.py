"""Compiles and measures every cell of the paper's tables on given models, and prints and renders the tables.

    python examples/paper_tables/run.py --model tiny-llada --model tiny-dream --out build/paper_tables

A cell that is finished, of the same recipe, checkpoint, calibration and limit, is not made again: a killed grid goes on
where it was. All cells of a model run in one process and share the unquantized model's results; with `--jobs N`, N
processes share the cells. OUT gets a folder for each model and cell (artifact and report), results.json, tables.md and
tables.html.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cells import Cell, all_cells
from tables import make_table, markdown, page

import qspec
from qspec import runtime
from qspec.compiler import CompileOptions, find_inputs, read_recipe
from qspec.errors import QspecError
from qspec.evaluate import Measuring
from qspec.evaluate.remembered import Remembered
from qspec.files import write_whole
from qspec.progress import Quiet
from qspec.report.make import make_report

REMEMBERED = 2 << 30  # bytes of the unquantized model's hidden states that are kept


def how(limit: int | None, settings: dict[str, str]) -> str:
    """How cells are measured and with which parameters, as the first line of a finished cell's mark has it."""
    return ", ".join([f"limit {limit}", *(f"{key} {value}" for key, value in sorted(settings.items()))])


def run_cells(
    model: str, cells: Sequence[Cell], out: Path, device: str, settings: dict[str, str], limit: int | None = None
) -> None:
    """Compiles and measures what is not there yet, one cell after another."""
    baseline: Remembered | None = None
    for cell in cells:
        folder = out / cell.name
        inputs = find_inputs(read_recipe(cell.recipe, settings), model, device)
        done, key = out / f"{cell.name}.done", f"{how(limit, settings)}\n{json.dumps(inputs.facts)}"
        if done.is_file() and done.read_text(encoding="utf-8") == key:
            print(f"{model} {cell.name}: finished before", flush=True)
            continue
        if done.is_file():
            print(f"{model} {cell.name}: made again, of another recipe, checkpoint, machine or limit", flush=True)
        done.unlink(missing_ok=True)
        start = time.perf_counter()
        artifact = qspec.compile(
            cell.recipe, model, folder, device, settings=settings, options=CompileOptions(evaluate=False)
        )
        middle = time.perf_counter()
        if baseline is None:
            baseline = Remembered(runtime.load(inputs.origin.folder, device)[0], REMEMBERED)
        measuring = Measuring(limit, reference=False)  # a cell of its own
        make_report(artifact.path, str(inputs.origin.folder), device, cell.recipe.parent, Quiet(), baseline, measuring)
        write_whole(done, key)
        end = time.perf_counter()
        print(f"{model} {cell.name}: compiled in {middle - start:.0f} s, measured in {end - middle:.0f} s", flush=True)


def collect(
    cells: Sequence[Cell], out: Path, limit: int | None = None, settings: dict[str, str] | None = None
) -> list[dict[str, Any]]:
    """The reports of the cells that are finished with this limit and these parameters, with method and setting."""
    results = []
    for cell in cells:
        done, path = out / f"{cell.name}.done", out / cell.name / "report" / "report.json"
        if done.is_file() and done.read_text(encoding="utf-8").startswith(f"{how(limit, settings or {})}\n"):
            report = json.loads(path.read_text(encoding="utf-8"))
            results.append({"cell": cell.name, "method": cell.method, "setting": cell.setting, **report})
    return results


def in_processes(jobs: int, models: Sequence[str], cells: Sequence[Cell], arguments: list[str]) -> None:
    """Splits the cells over processes of this script. Raises SystemExit where one of them failed."""
    running = []
    for number in range(min(jobs, len(cells))):
        own = [cell.name for cell in cells[number::jobs]]
        options = [option for model in models for option in ("--model", model)]
        command = [sys.executable, __file__, *options, *arguments, "--cells", ",".join(own), "--no-tables"]
        running.append(subprocess.Popen(command))
    codes = [process.wait() for process in running]
    if any(codes):
        sys.exit("a process failed; the finished cells are kept, and the same command goes on")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--model", action="append", help="checkpoint folder, hub id or bundled stand-in; may be repeated"
    )
    parser.add_argument("--out", type=Path, default=Path("build/paper_tables"))
    parser.add_argument("--cells", help="names, separated by commas (default: all)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--limit", type=int, metavar="N", help="at most N items of a task and samples of a text")
    parser.add_argument("--jobs", type=int, default=1, help="processes (default: 1)")
    parser.add_argument("--set", action="append", default=[], metavar="K=V", help="a parameter of the recipes")
    parser.add_argument("--no-tables", action="store_true", help="only run the cells")
    args = parser.parse_args()

    models = args.model or ["tiny-llada", "tiny-dream"]
    cells = all_cells()
    if args.cells:
        wanted = args.cells.split(",")
        if unknown := sorted(set(wanted) - {cell.name for cell in cells}):
            parser.error(f"there is no cell {unknown[0]!r}; there are {', '.join(cell.name for cell in cells)}")
        cells = tuple(cell for cell in cells if cell.name in wanted)
    settings = dict(pair.split("=", 1) for pair in args.set)
    folders = {model: args.out / Path(model).name for model in models}
    try:
        if args.jobs > 1:
            options = ["--out", str(args.out), "--device", args.device]
            options += [] if args.limit is None else ["--limit", str(args.limit)]
            in_processes(args.jobs, models, cells, [*options, *(o for pair in args.set for o in ("--set", pair))])
        else:
            for model in models:
                run_cells(model, cells, folders[model], args.device, settings, args.limit)
    except QspecError as error:
        sys.exit(str(error))
    if args.no_tables:
        return
    results = {model: collect(all_cells(), folders[model], args.limit, settings) for model in models}
    tables = [make_table(model, found) for model, found in results.items() if found]
    write_whole(args.out / "results.json", json.dumps(results, indent=1) + "\n")
    write_whole(args.out / "tables.md", markdown(tables))
    write_whole(args.out / "tables.html", page(tables))
    print(markdown(tables))


if __name__ == "__main__":
    main()
