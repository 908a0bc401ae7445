"""Spec -> recipe text: flattened, every default written out, canonical. It resolves to an equal Spec."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from qspec.diagnostics import Span
from qspec.formats import Clip, TensorFormat
from qspec.language.fields import settings
from qspec.language.formatter import format_source
from qspec.language.spec import ModelRef, Search, Spec, TaskRequest


def spec_text(spec: Spec, defaults: bool = True) -> str:
    """The recipe in full; without `defaults`, only what differs from them. Both resolve to an equal Spec."""
    model = written(spec.model) if defaults or spec.model.revision != ModelRef.revision else f'"{spec.model.id}"'
    lines = ["qspec 1", f"recipe {spec.name} {{", f"family {written(spec.families)}", f"model {model}", "}"]
    lines += _block("calibrate", [*_settings(spec.calibrate, defaults)], defaults)
    for scheme in spec.schemes.values():
        lines += [f"scheme {scheme.name} {{", f"weights {operand_text(scheme.weights, defaults)}"]
        lines += [f"activations {operand_text(scheme.activations, defaults) if scheme.activations else 'none'}", "}"]
    lines += [rule.text for rule in spec.rules]
    lines += [use.text for use in spec.passes]
    if spec.search is not None:
        lines += _block("search", [*_search(spec.search, defaults)], defaults)
    evaluate = [f"nelbo {request}" for request in spec.evaluate.nelbo]
    evaluate += [_task(task, defaults) for task in spec.evaluate.tasks]
    evaluate += [f"require {gate}" for gate in spec.evaluate.gates]
    lines += _block("evaluate", evaluate, defaults)
    lines += _block("emit", [*_settings(spec.emit, defaults)], defaults)
    return format_source("\n".join(lines) + "\n")


def _block(kind: str, lines: list[str], defaults: bool) -> list[str]:
    """A block; an empty one only in full."""
    return [f"{kind} {{", *lines, "}"] if lines or defaults else []


def _settings(block: Any, defaults: bool, *but: str) -> Iterator[str]:
    """The settings of a block, or only those without their default."""
    for key, setting in settings(type(block)).items():
        value = getattr(block, setting.field)
        if key not in but and value is not None and (defaults or value != setting.default):
            yield f"{key} {written(value)}" if key != "kernels" else f"kernels triton for {written(value)}"


def written(value: Any) -> str:
    """A value as a recipe has it."""
    if isinstance(value, tuple):
        return ", ".join(map(written, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def _search(search: Search, defaults: bool) -> Iterator[str]:
    yield from (f"offer {offer}" for offer in search.offers)
    if search.budgets:
        yield f"budget {written(search.budgets)}"
    if search.task is not None:
        yield f"loss task {search.task}"
    elif search.text is not None:
        yield f"loss {search.loss} on {search.text}"
    yield from _settings(search, defaults, "offer", "budget", "loss", "fused")
    if defaults or not search.fused:
        yield f"fused {written(search.fused)}"


def operand_text(f: TensorFormat, defaults: bool = True) -> str:
    """An operand of a scheme as a recipe has it."""
    symmetry = "symmetric" if f.symmetric else "asymmetric"
    clip = f"clip {f.clip.ratio!r}" if f.clip.kind == "ratio" else f"clip {f.clip.kind}"
    return f"{f.number} {f.granularity} {symmetry} {clip if defaults or f.clip != Clip() else ''}"


def _task(task: TaskRequest, defaults: bool) -> str:
    inside = " ".join(_settings(task, defaults))
    return f"task {task.spelled} {{ {inside} }}" if inside else f"task {task.spelled}"


def spec_data(value: Any) -> Any:
    """A resolved recipe as plain JSON values, without the places it came from."""
    if is_dataclass(value) and not isinstance(value, type):
        return {
            f.name: spec_data(getattr(value, f.name))
            for f in fields(value)
            if not isinstance(getattr(value, f.name), Span)
        }
    if isinstance(value, Mapping):
        return {key: spec_data(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [spec_data(item) for item in value]
    return value
