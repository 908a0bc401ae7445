"""A plan as plain text: what `qspec plan` prints."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from qspec.language.spec import Weighting
from qspec.plan.estimates import compile_memory, compile_operations
from qspec.plan.modules import ModulePlan, bits_text
from qspec.plan.notes import notes
from qspec.plan.plan import Plan


def render(plan: Plan, notice: str | None) -> str:
    """The plan as plain text."""
    shape = plan.shape
    lines = [
        *([notice, ""] if notice else []),
        f"{plan.spec.name}: {plan.family}, {shape.layers} blocks, width {shape.width}, ffn {shape.ffn}",
        f"  block weights    {_count(plan.block_weights)} ({plan.block_weights:,})",
        f"  bits per weight  {bits_text(plan.bits_per_weight, plan.bits_per_weight_model, 3)}",
        "                   (codes, scales, zero points, online transforms; kept layers, embedding and head: 16)",
        f"  model bytes      {_size(plan.bytes_before)} -> {_size(plan.bytes_after)}",
        f"  calibration      {_calibration(plan)}",
        f"  compile needs    about {_size(compile_memory(plan))} of memory, "
        f"{compile_operations(plan) / 1e12:.1f} TFLOP",
        "",
    ]
    width = max(len(text) for text in (*(u.text for u in plan.spec.passes), *(r.rule.text for r in plan.rules))) + 2
    lines.append(f"{'rules, later ones win':<{width}}  matched  decides")
    lines += [f"  {r.rule.text:<{width}}{r.matched:>7}{r.decides:>9}" for r in plan.rules]
    lines += ["", f"{'passes, in order':<{width}}  modules"]
    counts = zip(plan.spec.passes, plan.pass_counts(), strict=True)
    lines += [f"  {use.text:<{width}}{count:>7}" for use, count in counts]
    lines += ["", "layers"]
    lines += _layers(plan)
    if merged := _merged(plan):
        lines += ["", "one GEMM each", *merged]
    if notes(plan):
        lines += ["", "notes", *(f"  {note}" for note in notes(plan))]
    return "\n".join(lines)


def _calibration(plan: Plan) -> str:
    """Rows, tokens and masks; weights where they are not all the same."""
    wanted = plan.calibrate
    draws = f" ({wanted.samples} samples, {wanted.draws} draws each)" if wanted.draws > 1 else ""
    rows = f"{wanted.rows} rows of {wanted.length} tokens{draws}, {plan.calibration_tokens:,} in all"
    masks = str(wanted.text) if wanted.mask is None else f"mask {wanted.mask}"
    weigh = f", weigh {wanted.weigh}" if wanted.weigh != Weighting() else ""
    return f"{rows}; {masks}{weigh}"


@dataclass(frozen=True)
class Alike:
    """Modules of one part with the same fate. roles: all of them as a selector would name them."""

    roles: str
    count: int
    scheme: str
    bits: float
    kernel: str


def alike(modules: Iterable[ModulePlan]) -> list[Alike]:
    """The modules, those with the same fate together."""
    groups: dict[tuple[str, str, float, str], list[int | None]] = {}
    for m in modules:
        key = (m.entry.role.part, m.scheme.name if m.scheme else "keep", m.bits, m.kernel)
        groups.setdefault(key, []).append(m.entry.role.block)
    found = []
    for (part, scheme, bits, kernel), blocks in groups.items():
        numbers = [b for b in blocks if b is not None]
        role = f"blocks[{ranges(numbers)}].{part}" if numbers else part
        found.append(Alike(role, len(blocks), scheme, bits, kernel))
    return found


def _layers(plan: Plan) -> list[str]:
    return [f"  {a.roles:<32} {a.scheme:<8} {a.bits:>6.3f} bits  {a.kernel}" for a in alike(plan.modules)]


def _merged(plan: Plan) -> list[str]:
    """One line for all blocks in which the same linears are one GEMM."""
    groups: dict[str, list[int]] = {}
    for index in range(plan.shape.layers):
        for group in plan.merged(index):
            gated = group[0].kernels is not None and group[0].kernels.gemm.gated
            parts = " + ".join(m.entry.role.part for m in group) + (", which gives silu(gate) up" if gated else "")
            groups.setdefault(parts, []).append(index)
    return [f"  blocks[{ranges(blocks)}]: {parts}" for parts, blocks in groups.items()]


def ranges(numbers: list[int]) -> str:
    """0..28, 30 for 0, 1, .., 28, 30."""
    runs: list[list[int]] = []
    for n in numbers:
        if runs and n == runs[-1][-1] + 1:
            runs[-1].append(n)
        else:
            runs.append([n])
    return ", ".join(str(r[0]) if len(r) == 1 else f"{r[0]}..{r[-1]}" for r in runs)


def _count(weights: int) -> str:
    return f"{weights / 1e9:.2f} B" if weights >= 1e9 else f"{weights / 1e6:.2f} M"


def _size(count: int) -> str:
    for unit, scale in (("GiB", 2**30), ("MiB", 2**20)):
        if count >= scale:
            return f"{count / scale:.2f} {unit}"
    return f"{count / 1024:.1f} KiB"
