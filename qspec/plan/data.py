"""A plan as plain JSON values."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from qspec.language.spec import Calibration
from qspec.plan.estimates import compile_memory, compile_operations
from qspec.plan.generating import TextSizes, generating_memory
from qspec.plan.notes import notes
from qspec.plan.plan import Plan


def plan_data(plan: Plan, texts: TextSizes | None = None) -> dict[str, Any]:
    """The stable form that `qspec plan --json` prints. texts: whose memory it says; None, one text."""
    return {
        "recipe": plan.spec.name,
        "family": plan.family,
        "block_weights": plan.block_weights,
        "active": {"block_weights": plan.active_weights, "bytes": -(-plan.active_bits // 8)},
        "bits_per_weight": plan.bits_per_weight,
        "bits_per_weight_model": plan.bits_per_weight_model,
        "bytes": {"before": plan.bytes_before, "after": plan.bytes_after},
        "calibration": _calibration(plan.calibrate),
        "compile": {"memory_bytes": compile_memory(plan), "operations": compile_operations(plan)},
        "generate": _generate(plan, texts or TextSizes.of(plan.shape)),
        "rules": [{"text": r.rule.text, "matched": r.matched, "decides": r.decides} for r in plan.rules],
        "passes": [
            {"text": use.text, "modules": count}
            for use, count in zip(plan.spec.passes, plan.pass_counts(), strict=True)
        ],
        "merged": [[str(m.entry.role) for m in group] for i in range(plan.shape.layers) for group in plan.merged(i)],
        "modules": [
            {
                "role": str(m.entry.role),
                "module": m.entry.module,
                "scheme": m.scheme.name if m.scheme else None,
                "bits": m.bits,
                "rotations": list(m.rotations),
                "kernel": m.kernel,
            }
            for m in plan.modules
        ],
        "kernels": [kernel.name for kernel in plan.kernels()],
        "notes": list(notes(plan)),
    }


def _generate(plan: Plan, texts: TextSizes) -> dict[str, Any]:
    memory = generating_memory(plan.shape, plan.bytes_after, texts)
    return asdict(texts) | {"memory_bytes": {**asdict(memory), "total": memory.total}}


def _calibration(wanted: Calibration) -> dict[str, Any]:
    return {
        "text": str(wanted.text),
        "samples": wanted.samples,
        "draws": wanted.draws,
        "rows": wanted.rows,
        "length": wanted.length,
        "tokens": wanted.rows * wanted.length,
        "mask": None if wanted.mask is None else str(wanted.mask),
        "weigh": str(wanted.weigh),
    }
