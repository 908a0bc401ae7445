"""The search: one function, each stage a named call.

recipe --plan--> space, limits --probe--> sensitivities --solve, refine--> layouts --write--> recipes, report
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from qspec.compiler import read_recipe
from qspec.errors import InputError, NumericsError, UsageError
from qspec.files import remove_unfinished, write_whole
from qspec.language.budgets import parse_budgets
from qspec.language.spec import Budget, Search
from qspec.latency import basis, timed_gpu
from qspec.plan import bits_text
from qspec.progress import Progress, Quiet
from qspec.search.allocate import allocate
from qspec.search.jobs import Errors, Fisher, Job, Noise, Probe, Result, Trial, fits, key_of
from qspec.search.limits import Limit, find_limits
from qspec.search.losses import Loss
from qspec.search.places import FOUND, require_places
from qspec.search.recipe import recipe_text
from qspec.search.refine import MeasuredLayout, best, predicted, refine
from qspec.search.rivals import rivals
from qspec.search.rows import facts, scheme_texts, search_rows
from qspec.search.space import Layout, ProbeTarget, Space, find_space
from qspec.search.store import Store
from qspec.search.workers import Setup, Workers, find_workers

CURVE = 25  # budgets of the predicted curve
Probing = Literal["forward", "noise", "fisher"]
Results = Callable[[Sequence[Job]], list[Result]]  # of jobs, in their order


@dataclass(frozen=True)
class Sensitivity:
    """What one target loses under one scheme."""

    target: ProbeTarget
    scheme: str
    loss: Loss


@dataclass(frozen=True)
class FoundLayout:
    """One budget's result. bits: of the blocks, which a budget of bits counts; model_bits: with embedding and head.

    measured: every layout that was measured for it, in order; empty where `refine` is 0."""

    limits: tuple[Limit, ...]
    solved: Layout
    layout: Layout
    predicted: float
    loss: float | None
    bits: float
    model_bits: float
    measured: tuple[MeasuredLayout, ...]
    path: Path

    @property
    def budget(self) -> str:
        return ", ".join(str(limit.budget) for limit in self.limits)

    def measured_of(self, origin: str) -> float | None:
        """The loss of the layout of this origin; None where it was not measured, or is the solver's too."""
        return next((layout.loss for layout in self.measured if layout.origin == origin), None)


@dataclass(frozen=True)
class Outcome:
    """Everything that a search found. curve: (bits, predicted loss) of the solver's layouts over all budgets."""

    space: Space
    model: str
    standin: bool
    sensitivities: tuple[Sensitivity, ...]
    found: tuple[FoundLayout, ...]
    curve: tuple[tuple[float, float], ...]
    folder: Path

    @property
    def search(self) -> Search:
        assert self.space.plan.spec.search is not None
        return self.space.plan.spec.search


@dataclass(frozen=True)
class SearchOptions:
    """budget: in place of the recipe's, such as "4.25 bits". sweep: further budgets, from the same probes, to recipes
    in the folder `sweep`. workers: processes, or with `ray` (a cluster's address, or "local") actors; one is this
    process, in which torch then has one thread on a CPU; None, `workers.fitting`. resume: there must be an earlier run.
    standin: as in `CompileOptions`.
    """

    budget: str | None = None
    sweep: Sequence[str] = ()
    workers: int | None = 1
    ray: str | None = None
    resume: bool = False
    standin: bool = True


def search(
    recipe: str | Path,
    model: str | None = None,
    out: str | Path | None = None,
    device: str = "auto",
    *,
    settings: Mapping[str, str] | None = None,
    options: SearchOptions = SearchOptions(),
    progress: Progress | None = None,
) -> Outcome:
    """Finds a layout within the budget and writes it as a recipe; what `qspec search` does.

    out: the file of the found recipe, by default build/search/NAME/NAME_found.qs. settings: values of the recipe's
    parameters.
    Raises RecipeError, InputError (`Infeasible` where no layout holds the budget), MachineError, NumericsError.
    """
    progress = progress or Quiet()
    asked = parse_budgets(options.budget) if options.budget else ()
    swept = [(text, parse_budgets(text)) for text in options.sweep]
    setup = Setup(read_recipe(recipe, settings), model, device, options.standin)
    inputs = setup.inputs(progress)
    space = find_space(inputs.plan)
    wanted = inputs.spec.search
    assert wanted is not None
    folder = Path("build/search") / inputs.spec.name
    path = Path(out) if out else folder / f"{inputs.spec.name}_found.qs"
    budgets = asked or wanted.budgets
    if not budgets:
        raise UsageError("no budget is given", hint='add --budget "4.25 bits", or a `budget` to the `search` block')
    sweeps = ((own, folder / "sweep" / f"{inputs.spec.name}_{_file(text)}.qs") for text, own in swept)
    goals = [(budgets, path), *sweeps]
    require_places([target for _, target in goals], folder)
    limits = [find_limits(space, own, timed_gpu(inputs.device)) for own, _ in goals]
    for own, (_, target) in zip(limits, goals, strict=True):  # what cannot be found or written, before any long work
        any_layout = allocate([[0.0] * len(unit.options) for unit in space.units], own)
        recipe_text(space, any_layout, _name(target.stem), (), target.parent)
        for limit in own:
            if limit.gemms:
                progress.note(f"{limit.budget}: {basis(limit.gemms)}")
    store = Store(folder / "results")
    remove_unfinished(folder)
    rows = search_rows(inputs)
    if rows.repetition:
        progress.note(rows.repetition)
    known = facts(inputs, rows)
    found_workers = find_workers(setup, inputs, options.workers, options.ray)
    run = _Run(store, known, scheme_texts(inputs), len(rows.trials), found_workers, progress, options.resume)
    try:
        with progress.phase("probe"):
            sensitivities = probe(space, wanted.probe, run.results)
        losses = option_losses(space, sensitivities)
        found = []
        for own, (_, target) in zip(limits, goals, strict=True):
            with progress.phase(f"search {', '.join(str(limit.budget) for limit in own)}"):
                found.append(_find(space, wanted, losses, own, target, run))
    finally:
        run.workers.close()
    outcome = Outcome(
        space, inputs.origin.id, inputs.origin.standin, sensitivities, tuple(found), _curve(space, losses), folder
    )
    for one in found:
        _write(outcome, one)
    return outcome


@dataclass
class _Run:
    """Jobs by way of the store: what is there is not computed again.

    rows: those of a trial. resume: of the first jobs, some must be there.
    """

    store: Store
    facts: Mapping[str, Any]
    schemes: Mapping[str, str]
    rows: int
    workers: Workers
    progress: Progress
    resume: bool

    def results(self, jobs: Sequence[Job]) -> list[Result]:
        """In the order of the jobs."""
        keys = [key_of(job, self.facts, self.schemes) for job in jobs]
        results: dict[str, Result] = {}
        for key, job in zip(keys, jobs, strict=True):
            kept = self.store.get(key)
            if kept is None:
                continue
            if fits(job, kept, self.rows):
                results[key] = kept
            else:
                self.progress.note(f"{self.store.path(key)} is damaged: measured again")
        if self.resume and not results:
            raise InputError(
                "there is no earlier search to resume",
                where=str(self.store.folder),
                hint="leave --resume out; what is kept of other models, calibrations or rows does not count",
            )
        self.resume = False
        missing = [job for key, job in zip(keys, jobs, strict=True) if key not in results]
        places = [key for key in keys if key not in results]
        for done, (place, result) in enumerate(self.workers.run(missing), 1):
            if not fits(missing[place], result, self.rows):
                job = missing[place]
                where = "a whole layout" if isinstance(job, Trial) else f"block {job.block}"
                raise NumericsError("a measured loss is NaN or Inf", where=where)
            results[places[place]] = self.store.put(places[place], result)
            self.progress.step(f"{done} of {len(missing)}")
        return [results[key] for key in keys]


def probe(space: Space, kind: Probing, results: Results) -> tuple[Sensitivity, ...]:
    """What every target loses under every scheme that it is offered, by one kind of probe."""
    blocks: dict[tuple[int, str], list[ProbeTarget]] = {}
    for target, schemes in space.targets().items():
        for scheme in schemes:
            blocks.setdefault((target.block, scheme.name), []).append(target)
    cells = {key: tuple(targets) for key, targets in sorted(blocks.items(), key=lambda item: item[0][0])}
    if kind == "noise":
        return _by_noise(cells, results)
    job = Fisher if kind == "fisher" else Probe
    losses = results([job(block, scheme, targets) for (block, scheme), targets in cells.items()])
    return tuple(
        Sensitivity(target, scheme, _loss(result[str(target)]))
        for ((_, scheme), targets), result in zip(cells.items(), losses, strict=True)
        for target in targets
    )


def _by_noise(cells: Mapping[tuple[int, str], tuple[ProbeTarget, ...]], results: Results) -> tuple[Sensitivity, ...]:
    """a t^2: one noise probe a target, and the error that each scheme makes of its outputs."""
    own: dict[int, dict[ProbeTarget, None]] = {}
    for (block, _), targets in cells.items():
        own.setdefault(block, {}).update(dict.fromkeys(targets))
    slopes: Result = {}
    for result in results([Noise(block, tuple(targets)) for block, targets in own.items()]):
        slopes |= result
    errors = results([Errors(block, scheme, targets) for (block, scheme), targets in cells.items()])
    return tuple(
        Sensitivity(target, scheme, _loss(slopes[str(target)]).scaled(result[str(target)]))
        for ((_, scheme), targets), result in zip(cells.items(), errors, strict=True)
        for target in targets
    )


def _loss(result: Result) -> Loss:
    return Loss(result["mean"], tuple(result["buckets"]))


def option_losses(space: Space, sensitivities: Sequence[Sensitivity]) -> list[list[float]]:
    """For each unit, of each option: the sum of what its targets lose alone; 0 where a unit has no choice."""
    table = {(sensitivity.target, sensitivity.scheme): sensitivity.loss.mean for sensitivity in sensitivities}
    return [
        [0.0] if unit.pinned else [sum(table[target, s.name] for target, s in o.probes) for o in unit.options]
        for unit in space.units
    ]


def _find(
    space: Space, wanted: Search, losses: list[list[float]], limits: tuple[Limit, ...], path: Path, run: _Run
) -> FoundLayout:
    solved = allocate(losses, limits, wanted.gap)
    starts = {"solver": solved, **rivals(space, limits)}

    def measure(layouts: Sequence[Layout]) -> list[Sequence[float]]:
        return [result["rows"] for result in run.results([trial(space, layout) for layout in layouts])]

    measured = refine(starts, losses, limits, measure, wanted.refine)
    chosen = best(measured) if measured else None
    layout = chosen.layout if chosen else solved
    plan = space.planned(layout)
    return FoundLayout(
        limits,
        solved,
        layout,
        predicted(losses, layout),
        chosen.loss if chosen else None,
        plan.bits_per_weight,
        plan.bits_per_weight_model,
        tuple(measured),
        path,
    )


def trial(space: Space, layout: Layout) -> Trial:
    """The job that measures a layout."""
    return Trial(tuple((role, choice.name if choice else None) for role, choice in space.choices(layout).items()))


def _curve(space: Space, losses: list[list[float]]) -> tuple[tuple[float, float], ...]:
    """From the cheapest layout to the dearest."""
    (whole,) = find_limits(space, [Budget("bits", "1", "bits")])
    least, most = whole.least, sum(map(max, whole.costs))
    points = []
    for step in range(CURVE):
        limit = Limit(whole.budget, whole.costs, 0, least + (most - least) * step // (CURVE - 1), whole.per_unit)
        layout = allocate(losses, [limit])
        points.append((float(limit.cost(layout) * limit.per_unit), predicted(losses, layout)))
    return tuple(dict.fromkeys(points))


def _file(budget: str) -> str:
    """4.25 bits -> 4p25_bits."""
    return "".join(c if c.isalnum() else {".": "p", " ": "_"}.get(c, "") for c in budget)


def _name(stem: str) -> str:
    """A file's name as that of a recipe: letters, digits and `_`, at most 64, no digit first."""
    name = re.sub(r"[^A-Za-z0-9_]", "_", stem)[:63]
    return f"_{name}" if name[:1].isdigit() else name


def _write(outcome: Outcome, found: FoundLayout) -> None:
    """The recipe, and the evidence beside it."""
    name, comments = _name(found.path.stem), _comments(outcome, found)
    text = recipe_text(outcome.space, found.layout, name, comments, found.path.parent)
    write_whole(found.path, text)
    write_whole(found.path.with_suffix(".json"), json.dumps(evidence(outcome, found), indent=1, allow_nan=False) + "\n")


def _comments(outcome: Outcome, found: FoundLayout) -> tuple[str, ...]:
    spec, search = outcome.space.plan.spec, outcome.search
    costs = ", ".join(f"{limit.shown(limit.cost(found.layout))} of {limit.budget}" for limit in found.limits)
    name = search.loss if search.loss != "task" else f"loss on {search.task}"
    measured = "" if found.loss is None else f", measured {found.loss:.4g} ({len(found.measured)} layouts)"
    where = f"the stand-in {outcome.model}" if outcome.standin else outcome.model
    times = tuple(f"Times of {limit.budget}: {basis(limit.gemms)}." for limit in found.limits if limit.gemms)
    return (
        f"{FOUND} {spec.name}: {costs}.",
        f"Bits per weight: {bits_text(found.bits, found.model_bits, 4)}; a budget of bits counts the blocks.",
        *times,
        f"On {where}, seed {search.seed}: {name} predicted {found.predicted:.4g}{measured}.",
    )


def evidence(outcome: Outcome, found: FoundLayout) -> dict[str, Any]:
    """What the choice rests on, as plain JSON values: the same for every run of the same search."""
    search = outcome.search
    return {
        "recipe": outcome.space.plan.spec.name,
        "model": {"id": outcome.model, "standin": outcome.standin},
        "loss": search.loss,
        "probe": search.probe,
        "seed": search.seed,
        "bits_per_weight": found.bits,
        "bits_per_weight_model": found.model_bits,
        "budgets": [
            {"budget": str(o.budget), "found": o.shown(o.cost(found.layout)), "least": o.shown(o.least)}
            for o in found.limits
        ],
        "gemms": [asdict(one) for limit in found.limits for one in limit.gemms],
        "predicted": found.predicted,
        "measured": found.loss,
        "layout": dict(trial(outcome.space, found.layout).schemes),
        "sensitivities": [
            {"target": str(one.target), "scheme": one.scheme, "loss": one.loss.mean, "buckets": list(one.loss.buckets)}
            for one in outcome.sensitivities
        ],
        "trials": [{"origin": one.origin, "predicted": one.predicted, "measured": one.loss} for one in found.measured],
        "curve": [{"bits": bits, "predicted": loss} for bits, loss in outcome.curve],
    }
