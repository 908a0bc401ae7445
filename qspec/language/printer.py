"""Spec -> recipe text: flattened, every default written out, canonical. It resolves to an equal Spec."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from qspec.diagnostics import Span
from qspec.formats import Clip, TensorFormat
from qspec.language.formatter import format_source
from qspec.language.spec import Calibration, Emit, ModelRef, Search, Spec, TaskRequest


def spec_text(spec: Spec, defaults: bool = True) -> str:
    """The recipe in full; without `defaults`, only what differs from them. Both resolve to an equal Spec."""
    write = _Full() if defaults else _Short()
    revision = write.unless(spec.model.revision, ModelRef(""), "revision", 'revision "{}"')
    lines = [
        "qspec 1",
        f"recipe {spec.name} {{",
        f"family {', '.join(spec.families)}",
        f'model "{spec.model.id}" {revision}',
        "}",
        *write.block("calibrate", _calibrate(spec.calibrate, write)),
    ]
    for scheme in spec.schemes.values():
        lines += [f"scheme {scheme.name} {{", f"weights {_operand(scheme.weights, write)}"]
        lines += [f"activations {_operand(scheme.activations, write) if scheme.activations else 'none'}", "}"]
    lines += [rule.text for rule in spec.rules]
    lines += [use.text for use in spec.passes]
    if spec.search is not None:
        lines += write.block("search", _search(spec.search, write))
    evaluate = [f"nelbo on {n.text} samples {n.samples}" for n in spec.evaluate.nelbo]
    evaluate += [_task(task, write) for task in spec.evaluate.tasks]
    lines += write.block("evaluate", evaluate)
    emit = write.unless(spec.emit.targets, Emit(), "targets", "kernels triton for {}")
    lines += write.block("emit", [emit, write.unless(spec.emit.regimes, Emit(), "regimes", "regime {}")])
    return format_source("\n".join(lines) + "\n")


class _Full:
    """Writes every setting."""

    def unless(self, value: Any, default: Any, name: str, form: str) -> str:
        """The setting, unless it is left out because it has its default."""
        return form.format(", ".join(value) if isinstance(value, tuple) else value)

    def block(self, kind: str, lines: list[str]) -> list[str]:
        """A block of the settings that are not empty."""
        return [f"{kind} {{", *(line for line in lines if line), "}"]


class _Short(_Full):
    """Leaves out what has its default, and empty blocks."""

    def unless(self, value: Any, default: Any, name: str, form: str) -> str:
        return "" if value == getattr(default, name) else super().unless(value, default, name, form)

    def block(self, kind: str, lines: list[str]) -> list[str]:
        return super().block(kind, lines) if any(lines) else []


def _calibrate(c: Calibration, write: _Full) -> list[str]:
    default = Calibration()
    return [
        write.unless(c.text, default, "text", "text {}"),
        write.unless(c.samples, default, "samples", "samples {}"),
        write.unless(c.length, default, "length", "length {}"),
        "" if c.mask is None else write.unless(c.mask, default, "mask", "mask {}"),
        write.unless(c.draws, default, "draws", "draws {}"),
        write.unless(c.weigh, default, "weigh", "weigh {}"),
        write.unless(c.seed, default, "seed", "seed {}"),
    ]


def _search(search: Search, write: _Full) -> list[str]:
    default = Search()
    lines = [
        f"offer {', '.join(scheme.name if scheme else 'keep' for scheme in offer.choices)} on {offer.selector.text}"
        for offer in search.offers
    ]
    if search.budgets:
        lines.append(f"budget {', '.join(map(str, search.budgets))}")
    if search.task is not None:
        lines.append(f"loss task {search.task}")
    elif search.text is not None:
        lines.append(f"loss {search.loss} on {search.text}")
    for name in ("samples", "length", "draws", "probe", "refine", "gap", "seed"):
        lines.append(write.unless(getattr(search, name), default, name, f"{name} {{}}"))
    return [*lines, write.unless(search.fused, default, "fused", f"fused {str(search.fused).lower()}")]


def _operand(f: TensorFormat, write: _Full) -> str:
    symmetry = "symmetric" if f.symmetric else "asymmetric"
    clip = write.unless(f.clip, TensorFormat(f.number, f.granularity), "clip", _clip(f.clip))
    return f"{f.number} {f.granularity} {symmetry} {clip}"


def _clip(clip: Clip) -> str:
    return f"clip {clip.ratio!r}" if clip.kind == "ratio" else f"clip {clip.kind}"


def _task(task: TaskRequest, write: _Full) -> str:
    default = TaskRequest(task.name)
    names = ("shots", "length", "steps", "block")
    settings = [write.unless(getattr(task, name), default, name, f"{name} {{}}") for name in names]
    if task.limit is not None:
        settings.append(f"limit {task.limit}")
    inside = " ".join(filter(None, settings))
    return f"task {task.name} {{ {inside} }}" if inside else f"task {task.name}"


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
