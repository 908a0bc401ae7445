"""A plan as plain text, which `qspec plan` prints, and as HTML, which notebooks show."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape
from types import MappingProxyType

from qspec.language.spec import PassUse, Weighting
from qspec.models.family import Role
from qspec.plan.estimates import compile_memory, compile_operations
from qspec.plan.generating import TextSizes, generating_memory
from qspec.plan.modules import ModulePlan, bits_text, gemms
from qspec.plan.notes import notes
from qspec.plan.plan import Plan


def render(plan: Plan, texts: TextSizes | None = None, more: Mapping[str, str] = MappingProxyType({})) -> str:
    """The plan as plain text. texts: whose memory it says; None, one text. more: facts that others know, by name."""
    lines = [*([plan.notice, ""] if plan.notice else []), _title(plan)]
    for name, value in {**_facts(plan, texts), **more}.items():
        lines.append(f"  {name:<15}  {value}")
        if name == "bits per weight":
            lines.append(f"{'':<19}({_COUNTED})")
    width = max(len(text) for text in (*(u.text for u in plan.spec.passes), *(r.rule.text for r in plan.rules))) + 2
    lines += ["", f"{'rules, later ones win':<{width}}  matched  decides"]
    lines += [f"  {r.rule.text:<{width}}{r.matched:>7}{r.decides:>9}" for r in plan.rules]
    lines += ["", f"{'passes, in order':<{width}}  modules"]
    lines += [f"  {use.text:<{width}}{count:>7}" for use, count in _passes(plan)]
    lines += ["", "layers"]
    lines += [f"  {a.roles:<32} {a.scheme:<8} {a.bits:>6.3f} bits  {a.kernel}" for a in alike(plan.modules)]
    if merged := _merged(plan):
        lines += ["", "one GEMM each", *(f"  {line}" for line in merged)]
    if notes(plan):
        lines += ["", "notes", *(f"  {note}" for note in notes(plan))]
    return "\n".join(lines)


_COUNTED = "codes, scales, zero points, online transforms; kept layers, embedding and head: 16"


def html(plan: Plan) -> str:
    """The plan as tables, for a notebook."""
    said = [f"<p><b>{escape(_title(plan))}</b></p>"]
    if plan.notice:
        said.insert(0, f"<p>{escape(plan.notice)}</p>")
    said.append(html_table((), [(name, value) for name, value in _facts(plan).items()]))
    rules = [(r.rule.text, r.matched, r.decides) for r in plan.rules]
    said.append(html_table(("rules, later ones win", "matched", "decides"), rules))
    said.append(html_table(("passes, in order", "modules"), [(use.text, count) for use, count in _passes(plan)]))
    layers = [(a.roles, a.scheme, f"{a.bits:.3f}", a.kernel) for a in alike(plan.modules)]
    said.append(html_table(("layers", "scheme", f"bits per weight ({_COUNTED})", "kernel"), layers))
    lines = [*(f"one GEMM: {line}" for line in _merged(plan)), *notes(plan)]
    said += [f"<ul>{''.join(f'<li>{escape(line)}</li>' for line in lines)}</ul>"] if lines else []
    return "\n".join(said)


def html_table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Rows as an HTML table; numbers on the right."""
    lines = ["<tr>" + "".join(f"<th>{escape(cell)}</th>" for cell in head) + "</tr>"] if head else []
    lines += ["<tr>" + "".join(_cell(cell) for cell in row) + "</tr>" for row in rows]
    return f"<table>{''.join(lines)}</table>"


def _cell(cell: object) -> str:
    side = "left" if isinstance(cell, str) else "right"
    return f'<td style="text-align: {side}">{escape(str(cell))}</td>'


def _title(plan: Plan) -> str:
    shape = plan.shape
    sizes = f"{plan.spec.name}: {plan.family}, {shape.layers} blocks, width {shape.width}"
    if shape.experts is None:
        return f"{sizes}, ffn {shape.ffn}"
    own = shape.experts
    dense = f", the first {own.dense} dense with ffn {shape.ffn}" if own.dense else ""
    shared = f" and a shared one of {own.shared}" if own.shared else ""
    return f"{sizes}, {own.count} experts of {own.ffn}, {own.top_k} a token{shared}{dense}"


def _facts(plan: Plan, texts: TextSizes | None = None) -> dict[str, str]:
    needs = f"about {_size(compile_memory(plan))} of memory, {compile_operations(plan) / 1e12:.1f} TFLOP"
    mixed = {
        "active weights": f"{_count(plan.active_weights)} ({plan.active_weights:,}) of the blocks for a token, "
        f"{_size(plan.active_bits // 8)} as stored"
    }
    return {
        "block weights": f"{_count(plan.block_weights)} ({plan.block_weights:,})",
        **(mixed if plan.shape.experts is not None else {}),
        "bits per weight": bits_text(plan.bits_per_weight, plan.bits_per_weight_model, 3),
        "model bytes": f"{_size(plan.bytes_before)} -> {_size(plan.bytes_after)}",
        "calibration": _calibration(plan),
        "compile needs": needs,
        "generate needs": f"about {_generating(plan, texts or TextSizes.of(plan.shape))}",
    }


def _generating(plan: Plan, texts: TextSizes) -> str:
    """The memory of texts at once, with and without a cache, which a block-causal model always has."""
    kept = [replace(texts, cache=cache) for cache in (False, True)]
    plain, cached = (_size(generating_memory(plan.shape, plan.bytes_after, one).total) for one in kept)
    if plan.shape.block is not None:
        return f"{cached} of GPU memory for {texts} at once"
    return f"{plain} of GPU memory for {texts} at once, {cached} with a cache"


def _passes(plan: Plan) -> list[tuple[PassUse, int]]:
    """Each pass with the number of modules that it touches."""
    return list(zip(plan.spec.passes, plan.pass_counts(), strict=True))


def _calibration(plan: Plan) -> str:
    """Rows, tokens and masks; weights where they are not all the same."""
    wanted = plan.calibrate
    draws = f" ({wanted.samples} samples, {wanted.draws} draws each)" if wanted.draws > 1 else ""
    halves = "" if plan.shape.block is None else ", noised and clean"
    rows = f"{wanted.rows} rows of {wanted.length} tokens{draws}{halves}, {plan.calibration_tokens:,} in all"
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
    same: dict[tuple[object, ...], list[ModulePlan]] = {}  # most have all of it in common
    for m in modules:
        key = (m.entry.role.part, id(m.scheme), id(m.kernels), m.stored_bits, m.entry.out_features)
        same.setdefault(key, []).append(m)
    groups: dict[tuple[str, str, float, str], list[Role]] = {}
    for own in same.values():
        first = own[0]
        fate = (first.entry.role.part, first.scheme.name if first.scheme else "keep", first.bits, first.kernel)
        groups.setdefault(fate, []).extend(m.entry.role for m in own)
    return [
        Alike(roles, count, scheme, bits, kernel)
        for (_, scheme, bits, kernel), found in groups.items()
        for roles, count in selected(found)
    ]


def selected(roles: Iterable[Role]) -> list[tuple[str, int]]:
    """Roles of one part as selectors would name them, with how many each names: blocks with the same experts together.

    `blocks[1..19].mlp.experts[0..255].up`.
    """
    blocks: dict[int | None, list[int]] = {}
    part = ""
    for role in roles:
        part = role.part
        blocks.setdefault(role.block, []).extend([] if role.expert is None else [role.expert])
    alike: dict[tuple[int, ...], list[int]] = {}
    for block, experts in blocks.items():
        alike.setdefault(tuple(experts), []).extend([] if block is None else [block])
    found = []
    for own, numbers in alike.items():
        inner = part.replace("experts", f"experts[{ranges(list(own))}]") if own else part
        named = f"blocks[{ranges(numbers)}].{inner}" if numbers else inner
        found.append((named, max(1, len(numbers)) * max(1, len(own))))
    return found


def _merged(plan: Plan) -> list[str]:
    """One line for all blocks in which the same linears are one GEMM."""
    groups: dict[str, dict[int, int]] = {}
    for modules, places in plan.alike_blocks:
        for group in gemms(modules):
            if len(group) == 1:
                continue
            kernel = group[0].kernels and group[0].kernels.gemm
            gated = f", which gives {kernel.activation}(gate) up" if kernel and kernel.gated else ""
            parts = " + ".join(m.entry.role.part for m in group) + gated
            alike = groups.setdefault(parts, {})
            alike.update({index: alike.get(index, 0) + 1 for index in places})
    said = []
    for parts, blocks in groups.items():
        each = max(blocks.values())
        of_experts = f" of each of {each} experts" if each > 1 else ""
        said.append(f"blocks[{ranges(sorted(blocks))}]: {parts}{of_experts}")
    return said


def ranges(numbers: list[int]) -> str:
    """0..28, 30 for 0, 1, .., 28, 30."""
    runs: list[list[int]] = []
    for n in sorted(numbers):
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
