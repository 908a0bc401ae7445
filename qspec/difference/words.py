"""The parts of a difference as people read them: what text and Markdown have in common."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from qspec.difference.changes import Fate, LayerChange, MeasureChange, Measured, PassChange, SettingChange, TotalChange
from qspec.language.spec import REGIMES

ARROW = "->"
NOTHING = "-"
SAME = "no difference: both mean the same"


def total(change: TotalChange) -> tuple[str, str, str, str]:
    """What it is, before, after, and by how much."""
    name, shown = _number(change.key)
    percent = round(100 * (change.after - change.before) / change.before, 1) + 0.0 if change.before else None
    return name, shown(change.before), shown(change.after), "" if percent is None else f"{percent:+} %"


def _number(key: str) -> tuple[str, Callable[[float], str]]:
    group, _, name = key.partition(".")
    if group == "time":
        return f"predicted time, {name} ({REGIMES[name][1]} tokens)", lambda ns: f"{ns / 1e6:.3f} ms"
    return {
        "bits_per_weight": ("bits per weight in the blocks", lambda bits: f"{bits:.3f}"),
        "bits_per_weight_model": ("bits per weight in the whole model", lambda bits: f"{bits:.3f}"),
        "bytes.before": ("bytes of the model in 16 bits", size),
        "bytes.after": ("bytes of the artifact", size),
        "compile.memory_bytes": ("memory of a compile", size),
        "generate.memory_bytes.total": ("memory of generating a text", size),
        "compile.operations": ("work of a compile", lambda count: f"{count / 1e12:.1f} TFLOP"),
    }[key]


def size(count: float) -> str:
    for unit, scale in (("GiB", 2**30), ("MiB", 2**20)):
        if count >= scale:
            return f"{count / scale:.2f} {unit}"
    return f"{count / 1024:.1f} KiB"


def modules(change: LayerChange, counted: bool) -> str:
    """How many they are, where a model is known."""
    count = len(change.modules)
    return f"{count} module{'' if count == 1 else 's'}" if counted else ""


def headline(change: LayerChange) -> str:
    """`w4a4 -> w8a8`, or the scheme that stayed."""
    before, after = change.modules[0].before, change.modules[0].after
    names = dict.fromkeys((_scheme(before), _scheme(after)))
    return f" {ARROW} ".join(names)


def _scheme(fate: Fate | None) -> str:
    if fate is None:
        return "absent"
    return fate.scheme or "keep"


def details(change: LayerChange) -> list[tuple[str, str, str]]:
    """(what, before, after) of everything about the modules that is not the same; kernels are left out."""
    shown: list[tuple[str, Callable[[Fate], str]]] = [
        ("weights", lambda fate: fate.weights),
        ("activations", lambda fate: fate.activations),
        ("offered", lambda fate: ", ".join(fate.offered)),
        ("rotated by", lambda fate: ", ".join(map(str, fate.rotations))),
    ]
    pairs = [(module.before, module.after) for module in change.modules]
    found = []
    for what, value in shown:
        before, after = (value(fate) if fate else "" for fate in pairs[0])
        if before != after:
            found.append((what, before or NOTHING, after or NOTHING))
    bits = [span(fate.bits for fate in fates if fate and fate.bits is not None) for fates in zip(*pairs, strict=True)]
    if bits[0] != bits[1]:
        found.append(("bits", bits[0], bits[1]))
    for before, after in dict.fromkeys((_gemm(before), _gemm(after)) for before, after in pairs):
        if before != after:
            found.append(("one GEMM", before or NOTHING, after or NOTHING))
    return found


def _gemm(fate: Fate | None) -> str:
    return " + ".join(fate.gemm) if fate else ""


def span(values: Iterable[float]) -> str:
    """4.003, or 4.003..4.008."""
    found = sorted(values)
    if not found:
        return NOTHING
    low, high = (f"{value:.3f}" for value in (found[0], found[-1]))
    return low if low == high else f"{low}..{high}"


def kernels(change: LayerChange) -> list[tuple[str, str]]:
    """Distinct kernels before and after, where they are not the same."""
    pairs = dict.fromkeys(
        (m.before.kernel if m.before else None, m.after.kernel if m.after else None) for m in change.modules
    )
    return [(before or NOTHING, after or NOTHING) for before, after in pairs if before != after]


def moved(change: PassChange) -> str:
    """Where a pass moved to, if it did."""
    places = change.place_before, change.place_after
    return "" if None in places or places[0] == places[1] else f"from place {places[0]} to {places[1]}"


def setting(change: SettingChange) -> str:
    """`calibrate samples: 128 -> 256`, `task mmlu: limit 100 -> 200`."""
    name = f"{change.block} {change.key}".rstrip()
    if change.before is None or change.after is None:
        sign = "+" if change.before is None else "-"
        return f"{sign} {name}  {change.after if change.before is None else change.before}".rstrip()
    return f"{name}  {change.before} {ARROW} {change.after}"


def measures(change: MeasureChange) -> tuple[str, str, str, str, str]:
    """Task, measure, before, after, and the 95 % interval of the difference, or that it is within noise."""
    from qspec.evaluate.results import METRIC_NAMES  # with numpy, which measured versions have loaded anyway
    from qspec.report.text import change as signed

    before, after = (_measured(value, change.metric) for value in (change.before, change.after))
    if change.interval is None:
        shown = ""
    else:
        low, high = (signed(end, change.metric) for end in change.interval)
        shown = f"{low.removesuffix(' %')} to {high}{', within noise' if change.noise else ''}"
    return change.task, METRIC_NAMES.get(change.metric, change.metric), before, after, shown


def _measured(value: Measured | None, metric: str) -> str:
    """`81.2 % (drop 3.1 %, n 48)`."""
    from qspec.report.text import drop, score

    if value is None:
        return "not measured"
    return f"{score(value.score, metric)} (drop {drop(value.drop_percent)}, n {value.n})"


def both(names: tuple[str, str]) -> str:
    """The two models, or the one that both are about."""
    return names[0] if names[0] == names[1] else f"{names[0]} and {names[1]}"
