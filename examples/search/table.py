"""Found layouts against a uniform one and 8-bit first and last blocks, at equal bits, on text that no search has seen.

    python examples/search/table.py run weights tiny-llada --seed 0 --budget "2.5 bits" --budget "3 bits"
    python examples/search/table.py compile weights tiny-llada --seed 0 --budget "2.5 bits"
    python examples/search/table.py show build/search_table

`run` searches, with one set of probes for all budgets, and measures the layouts of each. A layout is compiled block by
block with the recipe's passes, its calibration seed being the search's, and its NELBO is measured on held-out text of
the stand-in's world, written for this table and masked by a seed of its own, less the unquantized model's NELBO.
`compile` makes artifacts of the layouts' recipes, and measures those as every compile does, on the bundled held-out
split. Results go to files in OUT, and `show` prints the tables of all. Runs side by side need a folder each to work in.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import statistics
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qspec.compiler import CompileOptions, read_recipe

sys.path.insert(0, str(Path(__file__).parents[1] / "standins"))
from corpus import documents

import qspec
from qspec import resources
from qspec.compiler import find_inputs
from qspec.data.items import TextData
from qspec.evaluate.nelbo import masked_rows, windows
from qspec.files import write_whole
from qspec.runtime import load_tokenizer
from qspec.search.engine import Engine
from qspec.search.losses import LossRows
from qspec.search.recipe import recipe_text
from qspec.search.rivals import rivals
from qspec.search.run import Outcome, SearchOptions, search, trial
from qspec.search.space import Layout

TEXT, MASKS = 5, 12345  # seeds of the held-out documents, which no other file of a stand-in has, and of their masks
DRAWS = 2  # masks of each window
RIVALS = ("uniform", "first and last")
METHODS = ("found", "solver", *RIVALS)


def heldout(engine: Engine, samples: int) -> LossRows:
    """Windows of new held-out text, masked as `qspec eval` masks it."""
    length = engine.model.shape.max_length
    texts = tuple(itertools.islice(documents("heldout", TEXT), samples * length // 20))  # more than enough
    tokenizer, vocab = load_tokenizer(engine.inputs.origin.folder), engine.model.shape.vocab
    passages = windows(TextData("held-out", (Path("held-out"),), texts), tokenizer, vocab, samples, length)
    assert len(passages) == samples
    return LossRows(engine.model, masked_rows(passages, DRAWS, MASKS), "nelbo", 4096)


def cell(args: argparse.Namespace, budget: str) -> str:
    return f"{args.recipe}-{args.model}-{args.seed}-{budget.replace(' ', '_')}"


def recipe_of(args: argparse.Namespace, budget: str, method: str) -> Path:
    folder: Path = args.out / "recipes"
    return folder / f"{cell(args, budget)}-{method.replace(' ', '_')}.qs"


def run(args: argparse.Namespace) -> None:
    recipe = resources.recipes() / "search" / f"{args.recipe}.qs"
    settings = {"seed": str(args.seed), "draws": str(args.draws)}
    engine = Engine(
        find_inputs(read_recipe(recipe, settings), args.model, "cpu", options=CompileOptions(evaluate=False))
    )
    engine.trial_rows = heldout(engine, args.samples)
    for budget in args.budget:
        start = time.perf_counter()
        outcome = search(recipe, args.model, device="cpu", settings=settings, options=SearchOptions(budget))
        seconds = time.perf_counter() - start
        (found,) = outcome.found
        layouts = {"found": found.layout, "solver": found.solved, **rivals(outcome.space, found.limits)}
        result: dict[str, Any] = {"recipe": args.recipe, "model": args.model, "seed": args.seed, "budget": budget}
        result["trials"] = [[one.origin, one.predicted, one.loss] for one in found.measured]
        measured: dict[Layout, list[float]] = {}
        for name, layout in layouts.items():
            if layout not in measured:
                measured[layout] = engine.run(trial(outcome.space, layout))["rows"]
            bits = outcome.space.planned(layout).bits_per_weight
            result[name] = {"bits": bits, "rows": measured[layout]}
        write_recipes(outcome, layouts, args, budget)
        write_whole(args.out / f"{cell(args, budget)}.json", json.dumps(result) + "\n")
        summary = {method: round(statistics.mean(result[method]["rows"]), 4) for method in METHODS}
        print(f"{args.recipe} {args.model} seed {args.seed}, {budget}, {seconds:.0f} s: {summary}", flush=True)


def write_recipes(outcome: Outcome, layouts: Mapping[str, Layout], args: argparse.Namespace, budget: str) -> None:
    for name, layout in layouts.items():
        path = recipe_of(args, budget, name)
        comment = (f"{name} at {budget}, seed {args.seed}.",)
        write_whole(path, recipe_text(outcome.space, layout, name.replace(" ", "_"), comment, path.parent))


def compile_all(args: argparse.Namespace) -> None:
    for budget in args.budget:
        for method in ("found", *RIVALS):
            path = recipe_of(args, budget, method)
            artifact = qspec.compile(path, args.model, out=Path("build") / path.stem, device="cpu")
            report = json.loads((artifact.path / "report" / "report.json").read_text(encoding="utf-8"))
            (metric,) = (one for one in report["metrics"] if one["metric"] == "nelbo")
            result = {key: metric[key] for key in ("baseline", "quantized", "n", "stderr")}
            result["bits"] = artifact.manifest.bits_per_weight
            write_whole(args.out / "artifacts" / f"{path.stem}.json", json.dumps(result) + "\n")
            print(f"{path.stem}: {result}", flush=True)


def show(args: argparse.Namespace) -> None:
    results = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(args.folder.glob("*.json"))]
    rows: dict[tuple[str, str, float], list[dict[str, Any]]] = {}
    for result in results:
        key = (result["model"], result["recipe"], float(result["budget"].split()[0]))
        rows.setdefault(key, []).append(result)
    print(f"| model | choices | bits | {' | '.join(METHODS)} | uniform less found, by seed | found is best |")
    print("|---|---|--:|" + "--:|" * len(METHODS) + "---|--:|")
    for (model, recipe, budget), row in sorted(rows.items()):
        cells = [spread([statistics.mean(one[method]["rows"]) for one in row]) for method in METHODS]
        wins = sum(all(difference(one, rival)[0] > 0 for rival in RIVALS) for one in row)
        gains = ", ".join("{:.4f} ± {:.4f}".format(*difference(one, "uniform")) for one in row)
        print(f"| {model} | {recipe} | {budget:g} | {' | '.join(cells)} | {gains} | {wins} of {len(row)} |")
    room = {m: [float(one["budget"].split()[0]) - one[m]["bits"] for one in results] for m in METHODS}
    print("\nbits left of the budget: " + "; ".join(f"{m} {min(b):.4f} to {max(b):.4f}" for m, b in room.items()))
    for path in sorted((args.folder / "artifacts").glob("*.json")):
        one = json.loads(path.read_text(encoding="utf-8"))
        gain = one["quantized"] - one["baseline"]
        print(f"artifact {path.stem}: {one['bits']:.4f} bits, +{gain:.4f} (n {one['n']}, stderr {one['stderr']:.4f})")


def spread(values: list[float]) -> str:
    """Mean and standard deviation over the seeds."""
    return f"+{statistics.mean(values):.4f}" + (f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else "")


def difference(one: Mapping[str, Any], rival: str) -> tuple[float, float]:
    """How much more a rival loses than the found layout, row by row: the mean and its standard error."""
    each = [a - b for a, b in zip(one[rival]["rows"], one["found"]["rows"], strict=True)]
    return statistics.mean(each), statistics.stdev(each) / math.sqrt(len(each))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True)
    for name, function in (("run", run), ("compile", compile_all)):
        one = commands.add_parser(name)
        one.add_argument("recipe", choices=("weights", "mix"))
        one.add_argument("model")
        one.add_argument("--budget", action="append", required=True)
        one.add_argument("--seed", type=int, default=0)
        one.add_argument("--draws", type=int, default=2, help="masks of each window that the search is measured on")
        one.add_argument("--samples", type=int, default=64, help="windows of held-out text")
        one.add_argument("--out", type=Path, default=Path("build/search_table"))
        one.set_defaults(run=function)
    all_of_it = commands.add_parser("show")
    all_of_it.add_argument("folder", type=Path)
    all_of_it.set_defaults(run=show)
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
