"""How well each kind of probe predicts the loss of whole layouts: rank correlation over random ones.

    python examples/search/predictors.py weights tiny-llada --layouts 24

Every unit of a layout has an option drawn at random. The predicted loss is the sum of what the options lose alone; the
true one is measured on the compiled layout, on the probes' rows.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Sequence
from pathlib import Path

from scipy.stats import spearmanr

from qspec import resources
from qspec.compiler import CompileOptions, find_inputs, read_recipe
from qspec.search.engine import Engine
from qspec.search.jobs import Job, Result
from qspec.search.refine import predicted
from qspec.search.run import option_losses, probe, trial

KINDS = ("forward", "fisher", "noise")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe", choices=("weights", "mix"))
    parser.add_argument("model")
    parser.add_argument("--layouts", type=int, default=24)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    recipe: Path = resources.recipes() / "search" / f"{args.recipe}.qs"
    engine = Engine(
        find_inputs(
            read_recipe(recipe, {"seed": str(args.seed)}), args.model, "cpu", options=CompileOptions(evaluate=False)
        )
    )
    engine.trial_rows = engine.rows
    units = engine.space.units
    draw = random.Random(args.seed)
    layouts = [tuple(draw.randrange(len(unit.options)) for unit in units) for _ in range(args.layouts)]

    def results(jobs: Sequence[Job]) -> list[Result]:
        return [engine.run(job) for job in jobs]

    true = [result["mean"] for result in results([trial(engine.space, layout) for layout in layouts])]
    print(f"{args.recipe} {args.model}: measured losses from {min(true):.4g} to {max(true):.4g}", flush=True)
    for kind in KINDS:
        start = time.process_time()
        losses = option_losses(engine.space, probe(engine.space, kind, results))
        sums = [predicted(losses, layout) for layout in layouts]
        found = {"probe": kind, "rank_correlation": round(float(spearmanr(sums, true).statistic), 3)}
        found |= {"predicted_over_measured": round(sum(sums) / sum(true), 3)}
        print(json.dumps(found | {"cpu_seconds": round(time.process_time() - start)}), flush=True)


if __name__ == "__main__":
    main()
