"""Found layouts against a uniform one and 8-bit first and last blocks, at equal bits, on text that no search has seen.

    python examples/search/table.py run weights tiny-llada --seed 0 --budget "2.5 bits" --budget "3 bits"
    python examples/search/table.py show build/search_table

`run` searches, with one set of probes, and measures four layouts for each budget. Each is compiled block by block with
the recipe's passes, its calibration seed being the search's, and its NELBO is measured on the held-out split, masked by
a seed of its own; the unquantized model's NELBO is taken off. Results go to a file each in OUT, and `show` prints the
table of all. Runs side by side need a folder each to work in.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

from baselines import first_last, uniform

from qspec import resources
from qspec.compiler import gather
from qspec.evaluate.nelbo import DRAWS, masked_rows, windows
from qspec.files import write_whole
from qspec.language.spec import NelboRequest
from qspec.runtime import load_tokenizer
from qspec.search.engine import Engine
from qspec.search.losses import LossRows
from qspec.search.run import search, trial
from qspec.search.space import Layout

MASKS = 12345  # seed of the held-out masks
METHODS = ("found", "solved", "uniform", "first and last")


def heldout(engine: Engine, samples: int) -> LossRows:
    """The recipe's held-out text, masked as `qspec eval` masks it."""
    text = engine.inputs.sources.heldout(NelboRequest().text)
    length = min(256, engine.model.shape.max_length)
    passages = windows(text, load_tokenizer(engine.inputs.origin.folder), samples, length)
    return LossRows(engine.model, masked_rows(passages, DRAWS, MASKS), "nelbo", 4096)


def run(args: argparse.Namespace) -> None:
    recipe = resources.recipes() / "search" / f"{args.recipe}.qs"
    settings = {"seed": str(args.seed), "draws": str(args.draws)}
    engine = Engine(gather(recipe, args.model, "cpu", settings=settings, evaluate=False))
    engine.rows = heldout(engine, args.samples)
    for budget in args.budget:
        start = time.perf_counter()
        outcome = search(recipe, args.model, budget, device="cpu", settings=settings)
        seconds = time.perf_counter() - start
        (found,) = outcome.found
        (limit,) = found.limits
        layouts: dict[str, Layout] = {
            "found": found.layout,
            "solved": found.solved,
            "uniform": uniform(outcome.space, limit),
            "first and last": first_last(outcome.space, limit),
        }
        result: dict[str, Any] = {"recipe": args.recipe, "model": args.model, "seed": args.seed, "budget": budget}
        for name, layout in layouts.items():
            increase = engine.run(trial(outcome.space, layout))["mean"]
            result[name] = {"bits": outcome.space.planned(layout).bits_per_weight, "increase": increase}
        result["trials"] = [[one.predicted, one.loss] for one in found.measured]
        result["text"] = found.path.read_text(encoding="utf-8")
        name = f"{args.recipe}-{args.model}-{args.seed}-{budget.replace(' ', '_')}.json"
        write_whole(args.out / name, json.dumps(result, indent=1) + "\n")
        summary = {method: round(result[method]["increase"], 4) for method in METHODS}
        print(f"{args.recipe} {args.model} seed {args.seed}, {budget}, {seconds:.0f} s: {summary}", flush=True)


def show(args: argparse.Namespace) -> None:
    results = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(args.folder.glob("*.json"))]
    rows: dict[tuple[str, str, float], list[dict[str, Any]]] = {}
    for result in results:
        key = (result["model"], result["recipe"], float(result["budget"].split()[0]))
        rows.setdefault(key, []).append(result)
    print("| model | choices | budget | " + " | ".join(f"{m}: bits" + f" | {m}: NELBO" for m in METHODS) + " | wins |")
    print("|---|---|--:|" + "--:|--:|" * len(METHODS) + "--:|")
    for (model, recipe, budget), row in sorted(rows.items()):
        cells = []
        for method in METHODS:
            values = [one[method]["increase"] for one in row]
            spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
            cells.append(f"{max(one[method]['bits'] for one in row):.3f} | +{statistics.mean(values):.3f}{spread}")
        rivals = ("uniform", "first and last")
        wins = sum(all(one["found"]["increase"] < one[rival]["increase"] for rival in rivals) for one in row)
        print(f"| {model} | {recipe} | {budget:g} | {' | '.join(cells)} | {wins} of {len(row)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True)
    one = commands.add_parser("run")
    one.add_argument("recipe", choices=("weights", "mix"))
    one.add_argument("model")
    one.add_argument("--budget", action="append", required=True)
    one.add_argument("--seed", type=int, default=0)
    one.add_argument("--draws", type=int, default=2, help="masks of each window that the search is measured on")
    one.add_argument("--samples", type=int, default=12, help="windows of held-out text")
    one.add_argument("--out", type=Path, default=Path("build/search_table"))
    one.set_defaults(run=run)
    all_of_it = commands.add_parser("show")
    all_of_it.add_argument("folder", type=Path)
    all_of_it.set_defaults(run=show)
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
