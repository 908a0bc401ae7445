"""Two versions' facts side by side: what is in one and not in the other becomes a change."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import TYPE_CHECKING, Any, TypeVar

from qspec.diagnostics import RecipeError
from qspec.difference.changes import (
    Difference,
    Fate,
    KernelChange,
    LayerChange,
    MeasureChange,
    Measured,
    ModuleChange,
    Number,
    PassChange,
    SettingChange,
    TotalChange,
)
from qspec.difference.facts import (
    Modules,
    Outline,
    Place,
    outlined_modules,
    planned_modules,
    selectors,
    settings_of,
)
from qspec.difference.versions import Version
from qspec.language.rules import selector_of
from qspec.language.spec import REGIMES, PassUse, Spec
from qspec.latency import REFERENCE, pass_time
from qspec.models.registry import FAMILIES
from qspec.plan import Plan, make_plan
from qspec.plan.estimates import compile_memory, compile_operations
from qspec.plan.generating import TextSizes, generating_memory
from qspec.planned import SHIPPED, Config

if TYPE_CHECKING:
    from qspec.evaluate.results import Metric

T = TypeVar("T")
Value = TypeVar("Value")


def compare(old: Version, new: Version, models: tuple[Config, Config] | None) -> Difference:
    """Everything in which NEW differs from OLD. models: OLD's and NEW's; None compares recipes for any model.

    Raises RecipeError or InputError where a recipe does not fit its model.
    """
    found = _outlined(old, new) if models is None else _planned(old, new, models)
    settings = [*_settings(settings_of(old.spec), settings_of(new.spec)), *found.settings]
    return Difference(
        old=old.name,
        new=new.name,
        models=None if models is None else (models[0].name, models[1].name),
        totals=found.totals,
        layers=_layers(*found.modules),
        passes=_passes(old.spec, new.spec, *found.modules),
        settings=tuple(settings),
        kernels=found.kernels,
        measured=_measured(old, new),
        notes=(*found.notes, *_unmeasured(old, new)),
    )


@dataclass(frozen=True)
class _Found:
    """What the modules are compared by, and what only a model tells."""

    modules: tuple[Modules, Modules]
    totals: tuple[TotalChange, ...] = ()
    kernels: tuple[KernelChange, ...] = ()
    settings: tuple[SettingChange, ...] = ()
    notes: tuple[str, ...] = ()


# --- with a model, and without ---


def _planned(old: Version, new: Version, models: tuple[Config, Config]) -> _Found:
    before, after = _plan(old, models[0]), _plan(new, models[1])
    totals = _totals(before, after)
    names = tuple(kernel.name for kernel in before.kernels()), tuple(kernel.name for kernel in after.kernels())
    kernels = [KernelChange("removed", name) for name in names[0] if name not in names[1]]
    kernels += [KernelChange("added", name) for name in names[1] if name not in names[0]]
    notes = [
        f"{version.spec.model.id} is not on this machine: planned for {config.name}"
        for version, config in zip((old, new), models, strict=True)
        if config is not version.config and config in (old.config, new.config)
    ]
    notes += [f"{config.name} is not on this machine: {SHIPPED}" for config in models if config.shipped]
    if any(change.key.startswith("time.") for change in totals):
        notes.append(f"times are predicted, of the linears of a forward pass on {REFERENCE}")
    return _Found(
        (planned_modules(before), planned_modules(after)), totals, tuple(kernels), notes=tuple(dict.fromkeys(notes))
    )


def _plan(version: Version, config: Config) -> Plan:
    try:
        return make_plan(version.spec, config.family, config.shape, standin=config.standin)
    except RecipeError as error:  # its lines are in the texts that were read, which may be no files
        raise RecipeError(error.diagnostics, version.loaded.sources) from None


def _outlined(old: Version, new: Version) -> _Found:
    """Modules of every model with so many blocks; where rules name modules by patterns, the rules as they are written
    too, since nobody knows what these match."""
    specs = old.spec, new.spec
    families = [FAMILIES[spec.families[0]] for spec in specs]
    outline = Outline.of(specs, families)
    modules = [outlined_modules(*both, outline) for both in zip(specs, families, strict=True)]
    rules: list[SettingChange] = []
    if any(selector.raw for spec in specs for selector in selectors(spec)):
        texts = ["; ".join(rule.text for rule in spec.rules) for spec in specs]
        rules += _settings({"layers": {"rules": texts[0]}}, {"layers": {"rules": texts[1]}})
    ids = " or ".join(dict.fromkeys(spec.model.id for spec in specs))
    note = (
        f"no config.json of {ids} is here: compared for models of {outline.layers} blocks or more, without bits, bytes "
        "and kernels; --model FOLDER takes one"
    )
    return _Found((modules[0], modules[1]), settings=tuple(rules), notes=(note,))


def _totals(before: Plan, after: Plan) -> tuple[TotalChange, ...]:
    numbers = _numbers(after)
    pairs = ((key, number, numbers[key]) for key, number in _numbers(before).items())
    return tuple(TotalChange(*pair) for pair in pairs if pair[1] != pair[2])


def _numbers(plan: Plan) -> dict[str, Number]:
    return {
        "bits_per_weight": plan.bits_per_weight,
        "bits_per_weight_model": plan.bits_per_weight_model,
        "bytes.before": plan.bytes_before,
        "bytes.after": plan.bytes_after,
        "compile.memory_bytes": compile_memory(plan),
        "compile.operations": compile_operations(plan),
        "generate.memory_bytes.total": generating_memory(plan.shape, plan.bytes_after, TextSizes.of(plan.shape)).total,
        **{f"time.{name}": pass_time(plan.linears(), tokens, REFERENCE) for name, (_, tokens) in REGIMES.items()},
    }


# --- settings ---


def _settings(before: Mapping[str, Mapping[str, str]], after: Mapping[str, Mapping[str, str]]) -> list[SettingChange]:
    """Setting by setting where both have the block, else the block as a whole."""
    found = []
    for block in dict.fromkeys([*before, *after]):
        old, new = before.get(block), after.get(block)
        if old is None or new is None:
            found.append(SettingChange(block, "", _whole(old), _whole(new)))
            continue
        found += [SettingChange(block, key, *values) for key, *values in _changed(old, new)]
    return found


def _whole(block: Mapping[str, str] | None) -> str | None:
    return None if block is None else "  ".join(f"{key} {value}" for key, value in block.items())


def _changed(before: Mapping[T, Value], after: Mapping[T, Value]) -> list[tuple[T, Value | None, Value | None]]:
    """What differs, by key; None where one has none."""
    keys = dict.fromkeys([*before, *after])
    return [(key, before.get(key), after.get(key)) for key in keys if before.get(key) != after.get(key)]


# --- modules ---


def _layers(old: Modules, new: Modules) -> tuple[LayerChange, ...]:
    groups: dict[Any, list[tuple[Place, ModuleChange]]] = {}
    for place, before, after in _changed(old.fates, new.fates):
        owner = new if after is not None else old
        change = ModuleChange(owner.role(place), before, after)
        groups.setdefault((_kind(before), _kind(after)), []).append((place, change))
    return tuple(
        LayerChange(_selector(dict(group), new if group[0][1].after is not None else old), tuple(c for _, c in group))
        for group in groups.values()
    )


def _kind(fate: Fate | None) -> Any:
    """What modules that change alike have in common: all but what follows from their sizes and places."""
    return fate and (fate.scheme, fate.weights, fate.activations, fate.offered, fate.rotations)


def _selector(places: Iterable[Place], modules: Modules) -> str:
    cells: dict[str, list[int]] = {}
    outer = []
    for block, part in places:
        if block is None:
            outer.append(part)
        else:
            cells.setdefault(part, []).append(block)
    inner = [selector_of(cells, modules.parts, modules.blocks)] if cells else []
    return ", ".join([*inner, *outer])


# --- passes ---


@dataclass(frozen=True)
class _Step:
    """A pass in its place. key: what it does to which modules."""

    use: PassUse
    place: int
    key: Any


def _passes(old: Spec, new: Spec, before: Modules, after: Modules) -> tuple[PassChange, ...]:
    """The passes that stay in order are those of a longest common sequence; of the others, equal ones moved, and those
    of one name changed."""
    alike = before.blocks == after.blocks and before.parts == after.parts
    old_steps, new_steps = _steps(old, before, alike), _steps(new, after, alike)
    keys = [step.key for step in old_steps], [step.key for step in new_steps]
    matcher = SequenceMatcher(None, *keys, autojunk=False)
    stayed = [(a + i, b + i) for a, b, size in matcher.get_matching_blocks() for i in range(size)]
    gone = [step for step in old_steps if step.place not in {a for a, _ in stayed}]
    come = [step for step in new_steps if step.place not in {b for _, b in stayed}]
    found = _paired("moved", gone, come, lambda step: step.key)
    found += _paired("changed", gone, come, lambda step: step.use.name)
    found += [PassChange("removed", step.use.text, None, step.place + 1, None) for step in gone]
    found += [PassChange("added", None, step.use.text, None, step.place + 1) for step in come]
    return tuple(sorted(found, key=lambda change: change.place_after or change.place_before or 0))


def _steps(spec: Spec, modules: Modules, alike: bool) -> list[_Step]:
    """alike: whether both have the same modules, so that selectors are compared by what they select."""
    pairs = zip(spec.passes, modules.selected, strict=True)
    return [
        _Step(use, place, (use.name, use.params, selected if alike and not use.selector.raw else use.selector))
        for place, (use, selected) in enumerate(pairs)
    ]


def _paired(kind: Any, gone: list[_Step], come: list[_Step], key: Callable[[_Step], Any]) -> list[PassChange]:
    """A change for each of `gone` that has a like in `come`; both are taken out."""
    found = []
    for step in list(gone):
        other = next((one for one in come if key(one) == key(step)), None)
        if other is not None:
            gone.remove(step)
            come.remove(other)
            found.append(PassChange(kind, step.use.text, other.use.text, step.place + 1, other.place + 1))
    return found


# --- measurements ---


def _measured(old: Version, new: Version) -> tuple[MeasureChange, ...]:
    if old.measured is None or new.measured is None:
        return ()
    before, after = ({(m.label, m.metric): m for m in metrics} for metrics in (old.measured(), new.measured()))
    pairs = ((key, one, other) for key, one, other in _changed(before, after) if _score(one) != _score(other))
    return tuple(
        MeasureChange(*key, _score(one), _score(other), *_paired_scores(one, other)) for key, one, other in pairs
    )


def _score(metric: Metric | None) -> Measured | None:
    return None if metric is None else Measured(metric.quantized, metric.drop_percent, metric.n)


def _paired_scores(before: Metric | None, after: Metric | None) -> tuple[tuple[float, float] | None, bool | None]:
    """Of the quantized models, item by item: items are the same where the unquantized model scored the same on each."""
    if before is None or after is None or not before.items or before.title != after.title:
        return None, None
    if [baseline for baseline, _ in before.items] != [baseline for baseline, _ in after.items]:
        return None, None
    from qspec.evaluate.statistics import of_means, of_shares

    old, new = ([quantized for _, quantized in metric.items] for metric in (before, after))
    if before.metric == "nelbo":
        found = of_means(old, new)
    else:
        found = of_shares([score > 0 for score in old], [score > 0 for score in new])
    return found.interval, found.noise


def _unmeasured(old: Version, new: Version) -> Sequence[str]:
    if (old.measured is None) == (new.measured is None):
        return ()
    return (f"only {(old if old.measured else new).name} was measured",)
