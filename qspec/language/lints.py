"""Lints: what a recipe may say and its author probably does not want. Warnings, unless `qspec check --strict`.

A comment `# allow QS045: REASON`, at the end of a statement's line or on its own above it, keeps one silent there.
grammar/errors.md has each one's source.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from qspec.catalog import NoKernel
from qspec.diagnostics import Diagnostic, Edit, Source, Span
from qspec.formats import Scheme
from qspec.language.layout import Layout
from qspec.language.merge import Merged
from qspec.language.spec import PassUse, Rule, Spec, TaskRequest
from qspec.language.syntax import Block
from qspec.models.family import ModuleEntry

MASSIVE = "mlp.down"  # the linear whose input has massive outliers
FEW_BITS = 4  # of activations that they leave nothing of
ANY_WIDTH = 4096  # stands for a width that is not known yet: rotations of this size exist
LOST_ITEMS = 6  # the fewest lost answers that an exact McNemar test calls a difference: 2 / 2^6 < 5 %
LARGEST_TIER = 4  # percent: the last tier starts at this relative drop
HOPPER = "sm_90"
_CODE = re.compile(r"QS\d{3}")
_ALLOW = re.compile(r"#\s*allow\s+((?:QS\d{3})(?:\s*,\s*QS\d{3})*)\s*:\s*\S")


# --- of rules, module by module ---


def rules_without_effect(spec: Spec, layout: Layout, sources: Mapping[str, Source]) -> list[Diagnostic]:
    """Rules without which every layer has the scheme that it has; all of them can be removed together.

    From the last to the first: a rule is judged by what it decides once those after it are gone that were found.
    """
    stacks: list[list[int]] = [[] for _ in layout.modules]  # module -> the rules that select it
    for i, selected in enumerate(layout.selected):
        for m in selected:
            stacks[m].append(i)
    found = []
    for i in reversed(range(len(spec.rules))):
        rule = spec.rules[i]
        decided = [m for m in layout.selected[i] if stacks[m][-1] == i]
        below = {spec.rules[stacks[m][-2]].scheme if len(stacks[m]) > 1 else None for m in decided}
        said_aloud = rule.scheme is None and any(layout.modules[m].role.block is None for m in decided)
        if below == {rule.scheme} and not said_aloud:
            for m in decided:
                stacks[m].pop()
            before = "by the rules above it" if any(stacks[m] for m in decided) else "by default"
            same = f"has scheme `{rule.scheme.name}`" if rule.scheme else "is kept"
            message = f"without this rule every layer that it decides {same} too, {before}"
            edits = _removal(rule.span, sources) if rule.span.path == spec.source else ()
            found.append(Diagnostic("QS038", message, rule.span, "remove this rule", "warning", edits))
    return found[::-1]


def _removal(span: Span, sources: Mapping[str, Source]) -> tuple[Edit, ...]:
    """A statement taken away, with its line where it has that to itself."""
    if span.path not in sources:
        return ()
    text = sources[span.path].text
    start, end = text.rfind("\n", 0, span.start) + 1, text.find("\n", span.end)
    end = len(text) if end < 0 else end + 1
    alone = not text[start : span.start].strip() and not text[span.end : end].strip()
    return (Edit(Span(start, end, span.path) if alone else span, ""),)


def unhandled_outliers(layout: Layout, uses: Sequence[Sequence[PassUse]]) -> list[Diagnostic]:
    """Rules that give 4-bit activations with one scale a token to inputs with massive outliers, unrotated.

    uses: module -> the passes on it.
    """
    found: dict[Rule, Diagnostic] = {}
    for entry, rule, passes in zip(layout.modules, layout.decided, uses, strict=True):
        if entry.role.part != MASSIVE or rule is None or rule.scheme is None or rule in found:
            continue
        if _fragile(rule.scheme) and not any(_rotates(use, entry, rule.scheme) for use in passes):
            name = rule.scheme.name
            message = f"`{MASSIVE}` reads massive outliers, beside which `{name}` leaves nothing of the other values"
            hint = "rotate that input (`rotate_duquant`, `quarot`), give it groups, or 8 bits"
            found[rule] = Diagnostic("QS045", message, rule.span, hint, "warning")
    return list(found.values())


def _fragile(scheme: Scheme) -> bool:
    activations = scheme.activations
    return activations is not None and activations.number.bits <= FEW_BITS and activations.granularity.kind != "group"


def _rotates(use: PassUse, entry: ModuleEntry, scheme: Scheme) -> bool:
    try:
        return bool(use.params.rotations(replace(entry, in_features=entry.in_features or ANY_WIDTH), scheme))
    except NoKernel:  # an error of its own
        return True


# --- of settings ---


def lints(spec: Spec, merged: Merged) -> Iterator[Diagnostic]:
    """What settings say."""
    yield from _masks(spec, merged)
    yield from _groups(spec, merged)
    yield from _regimes(spec, merged)
    for task in spec.evaluate.tasks:
        yield from _items(task, merged.tasks[task.name])


def _masks(spec: Spec, merged: Merged) -> Iterator[Diagnostic]:
    mask, node = spec.calibrate.mask, merged.settings.get("calibrate", {}).get("mask")
    if node is not None and mask is not None and mask.high == 0:
        message = "calibration sees no masks, and the model sees them in every step of denoising"
        yield Diagnostic("QS061", message, node.span, "write `mask uniform(0.0, 1.0)`, or leave it out", "warning")


def _groups(spec: Spec, merged: Merged) -> Iterator[Diagnostic]:
    used = {rule.scheme.name for rule in spec.rules if rule.scheme}
    for name, block in merged.schemes.items():
        activations = spec.schemes[name].activations
        if name not in used or activations is None or HOPPER not in spec.emit.targets:
            continue
        if activations.number.kind != "float" and activations.granularity.kind == "group":
            node = next(tree for tree in block.settings if tree.key.text == "activations")
            message = f"activations per group run the portable GEMM on {HOPPER}, which is mostly slower than bfloat16"
            yield Diagnostic(
                "QS046", message, node.span, "write `per token` with a rotation, if it is to be fast", "warning"
            )


def _regimes(spec: Spec, merged: Merged) -> Iterator[Diagnostic]:
    node = merged.settings.get("emit", {}).get("regime")
    schemes = [rule.scheme for rule in spec.rules if rule.scheme]
    if node is None or len(spec.emit.regimes) != 1 or not schemes:
        return
    (regime,) = spec.emit.regimes
    if regime == "full_sequence" and all(scheme.activations is None for scheme in schemes):
        message = "`full_sequence` is bound by arithmetic: 16-bit activations save memory there and no time"
        yield Diagnostic("QS047", message, node.span, "quantize activations, or add `block_decode`", "warning")
    if regime == "block_decode" and all(scheme.weights.number.bits == 8 for scheme in schemes):
        message = "`block_decode` is bound by the bytes of weights: 8 bits read twice as many as 4"
        yield Diagnostic("QS047", message, node.span, "use weights of 4 bits, or add `full_sequence`", "warning")


def _items(task: TaskRequest, block: Block) -> Iterator[Diagnostic]:
    if task.limit is None or LARGEST_TIER * task.limit >= LOST_ITEMS * 100:
        return
    least = 100 * LOST_ITEMS / task.limit
    message = (
        f"`{task.name}` on {task.limit} items tells no loss below {least:.3g} % from noise; tiers end at 1 and 4 %"
    )
    wanted = LOST_ITEMS * 100 // LARGEST_TIER
    node = next(tree for tree in block.settings if tree.key.text == "limit")
    yield Diagnostic("QS070", message, node.span, f"measure {wanted} items or more, or all of them", "warning")


# --- allowances ---


@dataclass(frozen=True)
class Allowance:
    """A code that a comment allows. line: of the statement where it holds."""

    code: str
    line: int
    span: Span


def not_allowed(found: Iterable[Diagnostic], sources: Mapping[str, Source]) -> list[Diagnostic]:
    """The errors, and those warnings that no comment allows."""
    allowed: dict[str, set[tuple[str, int]]] = {}  # path -> codes with their lines
    kept = []
    for one in found:
        source = sources.get(one.span.path)
        if one.severity == "warning" and source is not None:
            if source.path not in allowed:
                allowed[source.path] = {(own.code, own.line) for own in _allowances(source)}
            if _place(one, source) in allowed[source.path]:
                continue
        kept.append(one)
    return kept


def unused_allowances(found: Iterable[Diagnostic], source: Source, unsure: Collection[str]) -> list[Diagnostic]:
    """Comments of a recipe's own file that allow what is not found there. found: all warnings, allowed ones too.
    unsure: codes that may be found on a model yet."""
    used = {_place(one, source) for one in found if one.span.path == source.path}
    return [
        Diagnostic("QS072", f"there is no {one.code} to allow here", one.span, "remove the comment", "warning")
        for one in _allowances(source)
        if (one.code, one.line) not in used and one.code not in unsure
    ]


def _place(one: Diagnostic, source: Source) -> tuple[str, int]:
    return one.code, source.position(one.span.start).line


def _allowances(source: Source) -> list[Allowance]:
    """Of a line by its comment, or by the lines of comments above it; 0 behind the last statement."""
    if "allow" not in source.text:
        return []
    found: list[Allowance] = []
    waiting: list[tuple[str, Span]] = []
    for number, line in enumerate(source.text.split("\n"), 1):
        match = _ALLOW.search(line)
        start = source.line_start(number)
        for code in _CODE.finditer(line, *match.span(1)) if match else ():
            waiting.append((code[0], Span(start + code.start(), start + code.end(), source.path)))
        if line.strip() and not line.lstrip().startswith("#"):
            found += [Allowance(code, number, span) for code, span in waiting]
            waiting = []
    return found + [Allowance(code, 0, span) for code, span in waiting]
