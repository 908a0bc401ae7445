"""A difference as plain text."""

from __future__ import annotations

from collections.abc import Sequence

from qspec.difference import words
from qspec.difference.changes import Difference, LayerChange, PassChange
from qspec.difference.words import ARROW


def render(found: Difference) -> str:
    """Sections of what changed, in the order of a recipe; one sentence where nothing did."""
    sections = [
        _table([words.total(change) for change in found.totals]),
        [line for change in found.layers for line in _layers(change, found.models is not None)],
        [line for change in found.passes for line in _passes(change)],
        [f"  {words.setting(change)}" for change in found.settings],
        [
            f"  {task}, {metric}  {before} {ARROW} {after}  {change}".rstrip()
            for task, metric, before, after, change in map(words.measures, found.measured)
        ],
        [f"  {'+' if change.kind == 'added' else '-'} {change.name}" for change in found.kernels],
    ]
    heads = ("totals", "layers", "passes", "settings", "measured", "kernels")
    lines = [f"{found.old} {ARROW} {found.new}{_models(found)}"]
    for head, body in zip(heads, sections, strict=True):
        if body:
            lines += ["", head, *body]
    if not found:
        lines = [words.SAME]
    lines += ["", *(f"note: {note}" for note in found.notes)] if found.notes else []
    return "\n".join(lines)


def _passes(change: PassChange) -> list[str]:
    """- what was, + what is, > what only moved."""
    where = words.moved(change)
    after = f"{change.after}  ({where})" if where else change.after
    if change.kind == "moved":
        return [f"  > {after}"]
    return [f"  {sign} {text}" for sign, text in (("-", change.before), ("+", after)) if text]


def _models(found: Difference) -> str:
    return f", on {words.both(found.models)}" if found.models else ""


def _table(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        f"  {name.ljust(widths[0])}  {before.rjust(widths[1])} {ARROW} {after.rjust(widths[2])}  {change}".rstrip()
        for name, before, after, change in rows
    ]


def _layers(change: LayerChange, counted: bool) -> list[str]:
    head = "  ".join(part for part in (change.selector, words.modules(change, counted), words.headline(change)) if part)
    lines = [f"  {head}"]
    lines += [f"      {what:<12}{before} {ARROW} {after}" for what, before, after in words.details(change)]
    for before, after in words.kernels(change):
        lines += [f"      {'kernels':<12}{before}", f"      {'':<9}{ARROW} {after}"]
    return lines
