"""Spec -> recipe text: flattened, every default written out, canonical. It resolves to an equal Spec."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from qspec.diagnostics import Span
from qspec.formats import Clip, TensorFormat
from qspec.language.formatter import format_source
from qspec.language.spec import Calibration, Spec, TaskRequest


def spec_text(spec: Spec) -> str:
    """The recipe in full."""
    calibrate = _calibrate(spec.calibrate)
    lines = [
        "qspec 1",
        f"recipe {spec.name} {{",
        f"family {', '.join(spec.families)}",
        f'model "{spec.model.id}" revision "{spec.model.revision}"',
        "}",
        "calibrate {",
        *calibrate,
        "}",
    ]
    for scheme in spec.schemes.values():
        lines += [f"scheme {scheme.name} {{", f"weights {_operand(scheme.weights)}"]
        lines += [f"activations {_operand(scheme.activations) if scheme.activations else 'none'}", "}"]
    lines += [rule.text for rule in spec.rules]
    lines += [use.text for use in spec.passes]
    lines += ["evaluate {"]
    lines += [f"nelbo on {n.text} samples {n.samples}" for n in spec.evaluate.nelbo]
    lines += [_task(task) for task in spec.evaluate.tasks]
    lines += ["}", "emit {", f"kernels triton for {', '.join(spec.emit.targets)}"]
    lines += [f"regime {', '.join(spec.emit.regimes)}", "}"]
    return format_source("\n".join(lines) + "\n")


def _calibrate(c: Calibration) -> list[str]:
    lines = [f"text {c.text}", f"samples {c.samples}", f"length {c.length}"]
    if c.mask is not None:
        lines.append(f"mask {c.mask}")
    return [*lines, f"draws {c.draws}", f"weigh {c.weigh}", f"seed {c.seed}"]


def _operand(f: TensorFormat) -> str:
    symmetry = "symmetric" if f.symmetric else "asymmetric"
    return f"{f.number} {f.granularity} {symmetry} {_clip(f.clip)}"


def _clip(clip: Clip) -> str:
    return f"clip {clip.ratio!r}" if clip.kind == "ratio" else f"clip {clip.kind}"


def _task(task: TaskRequest) -> str:
    limit = f" limit {task.limit}" if task.limit is not None else ""
    sampler = f"length {task.length} steps {task.steps} block {task.block}"
    return f"task {task.name} {{ shots {task.shots} {sampler}{limit} }}"


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
